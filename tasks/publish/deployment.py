"""The part of the card that says how to run the model: commands for what the layout was checked for."""

from __future__ import annotations

from tasks.publish.layout import Layout
from tasks.publish.stage import PublishRecipe

_OUT_TYPES = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
"""llama.cpp's names of safetensors' types."""
_CHAT = """messages = [{"role": "user", "content": "Sort: 3 1 2"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""
_PLAIN = """inputs = tokenizer("Sort: 3 1 2", return_tensors="pt")"""


def _rotary(layout: Layout) -> str:
    if "rope_theta" in layout.config:
        return "config.json has rope_theta also where what is older than transformers 5 looks for it."
    return (
        "config.json is laid out as by transformers 5, and what does not know its rope_parameters takes other rotary "
        "embeddings without a word."
    )


def deployment_text(recipe: PublishRecipe, layout: Layout) -> str:
    """Markdown with the commands of transformers, vLLM, SGLang and llama.cpp."""
    repo = recipe.repo_name
    name = repo.rpartition("/")[2]
    out_type = _OUT_TYPES.get(layout.dtypes[0], "auto") if len(layout.dtypes) == 1 else "auto"
    if recipe.target == "hub":
        place, fetch = (
            f"`{repo}` is the repository on the hub, or a folder with its files.",
            f"hf download {repo} --local-dir {name}\n",
        )
    else:
        place, fetch = f"In place of `{repo}` put the path of the folder with these files.", ""
    return f"""{place} When this card was written the layout was checked against what these four ask for: weights as \
safetensors with a complete index, tokenizer.json, an end of turn in generation_config.json, and an architecture that \
each of them lists ({layout.architecture}). No server was started, and from which version on each reads these files \
was not tried. {_rotary(layout)}

**transformers**

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo}")
model = AutoModelForCausalLM.from_pretrained("{repo}", dtype="auto", device_map="auto")
{_CHAT if layout.has_template else _PLAIN}
output = model.generate(**inputs.to(model.device), max_new_tokens=64)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

**vLLM**, with the API of OpenAI on port 8000

```
vllm serve {repo}
```

**SGLang**, with the same API on port 30000

```
python -m sglang.launch_server --model-path {repo} --port 30000
```

**llama.cpp**, in its checkout; it must know the tokenizer's way of splitting words, as it does Llama 3's and Qwen2's

```
{fetch}python convert_hf_to_gguf.py {name if fetch else repo} --outfile {name}.gguf --outtype {out_type}
llama-server --model {name}.gguf
```"""
