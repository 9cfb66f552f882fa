"""Changes single settings in a profile's YAML and leaves every other byte as it is: comments, layout, anchors.

The text is edited at the marks of YAML's own parser, and the result is read again: it must differ from the profile in
exactly the settings asked for, or nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from yaml.nodes import MappingNode, Node, SequenceNode

from tasks.artifacts.errors import BadInputError

_MERGE = "<<"


@dataclass(frozen=True)
class Edit:
    """New values of settings in one mapping of a profile."""

    place: str
    """Dotted, such as fusion.fuse.recipe; a mapping that is there."""
    values: Mapping[str, Any]
    remove: Sequence[str] = ()
    """Settings that fall back to their defaults."""


@dataclass
class _Patch:
    """Replacements of parts of a text that do not overlap."""

    text: str
    parts: list[tuple[int, int, str]] = field(default_factory=list)

    def replace(self, start: int, end: int, new: str) -> None:
        self.parts.append((start, end, new))

    def applied(self) -> str:
        text = self.text
        for start, end, new in sorted(self.parts, reverse=True):
            text = text[:start] + new + text[end:]
        return text


def read_text(path: Path) -> str:
    """A profile's text with its own line ends."""
    return path.read_bytes().decode("utf-8")


def edited(text: str, edits: Sequence[Edit]) -> str:
    """The profile's text with the edits made, one after the other.

    Raises:
        BadInputError: a place is not there, or it is shared through an anchor with another, which would change too.
    """
    for edit in edits:
        text = _edited(text, edit)
    return text


def _edited(text: str, edit: Edit) -> str:
    wanted = yaml.safe_load(text)
    place = _unshared_path(wanted, edit)
    place.update(_plain(edit.values))
    for name in edit.remove:
        place.pop(name, None)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert root is not None
    node = _find(root, edit)
    patch = _Patch(text)
    current = {key.value for key, _value in node.value}
    _merge(patch, node, {**{name: place[name] for name in current & place.keys()}, **_plain(edit.values)})
    new = patch.applied()
    try:
        same = yaml.safe_load(new) == wanted
    except yaml.YAMLError:
        same = False
    if not same:
        raise _cannot(edit, "its layout is one that cannot be edited safely")
    return new


def _plain(value: Any) -> Any:
    """As YAML would give it back: lists instead of tuples."""
    return json.loads(json.dumps(value))


def _cannot(edit: Edit, why: str) -> BadInputError:
    settings = ", ".join(f"{name}: {_flow(value)}" for name, value in edit.values.items())
    return BadInputError(f"the choice is not written into {edit.place}, as {why}; write it there yourself: {settings}")


def _unshared_path(document: Any, edit: Edit) -> dict[str, Any]:
    """The mapping at the place, in a document in which nothing above it is shared with another place any more."""
    keys = edit.place.split(".")
    for key in keys:
        if not isinstance(document, dict) or not isinstance(document.get(key), dict):
            raise _cannot(edit, f"{key} is no mapping there")
        document = document[key]
    return cast("dict[str, Any]", document)


def _find(root: Node, edit: Edit) -> MappingNode:
    """The node at the place.

    Raises:
        BadInputError: an alias shares it, what holds it, or something in it that would be replaced.
    """
    node, path = root, [root]
    for key in edit.place.split("."):
        found = [value for name, value in cast("MappingNode", node).value if name.value == key]
        if len(found) != 1:
            raise _cannot(edit, f"{key} comes from a merge key (<<) there")
        node = found[0]
        path.append(node)
    times: dict[int, int] = {}
    for each in _walk(root):
        times[id(each)] = times.get(id(each), 0) + 1
    touched = [value for key, value in cast("MappingNode", node).value if key.value in {*edit.values, *edit.remove}]
    if any(times[id(each)] > 1 for each in [*path, *(each for value in touched for each in _walk(value))]):
        raise _cannot(edit, "an anchor shares that text with another place, which would change too")
    return cast("MappingNode", node)


def _walk(node: Node) -> Iterator[Node]:
    """The node and all below it; what an alias names is met once more for each alias."""
    yield node
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield from _walk(key)
            yield from _walk(value)
    elif isinstance(node, SequenceNode):
        for item in node.value:
            yield from _walk(item)


def _end(node: Node) -> int:
    """Index behind the node's last character; a block's own mark is behind the comments that follow it."""
    if isinstance(node, MappingNode | SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(node, MappingNode) else last)
    return int(node.end_mark.index)


def _merge(patch: _Patch, node: MappingNode, wanted: Mapping[str, Any]) -> None:
    """Makes the mapping hold `wanted`, touching only what differs."""
    kept = [pair for pair in node.value if pair[0].value in wanted]
    gone = [pair for pair in node.value if pair[0].value not in wanted and pair[0].value != _MERGE]
    if not kept or (gone and node.flow_style):
        patch.replace(node.start_mark.index, _end(node), _flow(wanted))
        return
    for key, value in kept:
        new = wanted[key.value]
        if yaml.safe_load(yaml.serialize(value)) == new:
            continue
        if isinstance(value, MappingNode) and isinstance(new, dict) and value.value:
            _merge(patch, value, new)
        elif isinstance(value, MappingNode | SequenceNode) and not value.flow_style:
            # What took lines of its own moves up beside its key.
            patch.replace(key.end_mark.index, _end(value), f": {_written(new, node)}")
        else:
            patch.replace(value.start_mark.index, _end(value), _written(new, node))
    for key, value in gone:
        # With the rest of its last line, which can only be a comment on it.
        patch.replace(key.start_mark.index - key.start_mark.column, _line_end(patch.text, _end(value)) + 1, "")
    present = {key.value for key, _value in kept}
    added = [f"{_scalar(name)}: {_written(value, node)}" for name, value in wanted.items() if name not in present]
    if added:
        at = _end(kept[-1][1])
        if node.flow_style:
            patch.replace(at, at, "".join(f", {pair}" for pair in added))
        else:
            at, indent = _line_end(patch.text, at), " " * kept[-1][0].start_mark.column
            patch.replace(at, at, "".join(f"\n{indent}{pair}" for pair in added))


def _line_end(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found


def _written(value: Any, parent: MappingNode) -> str:
    """A value on one line, as it can stand in this mapping."""
    if parent.flow_style or isinstance(value, dict | list):
        return _flow(value)
    return yaml.dump(value, Dumper=_OneLine, width=10**6, allow_unicode=True).removesuffix("\n").removesuffix("\n...")


def _flow(value: Any) -> str:
    """On one line, as the profiles write it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    # In a flow collection, a plain scalar may hold fewer characters: it is written as an element of one.
    text = yaml.dump([value], Dumper=_OneLine, default_flow_style=True, width=10**6, allow_unicode=True).strip()
    return text[1:-1]


class _OneLine(yaml.SafeDumper):
    """Writes text with a line break as "a\\n" instead of over several lines, which no flow mapping should hold."""


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


_OneLine.add_representer(str, _represent)
