"""`python -m tests.golden.rewrite` writes keys.json anew, after a change of recipes that was meant."""

from __future__ import annotations

from tests.golden.keys import FILE, write

if __name__ == "__main__":
    write()
    print(f"wrote {FILE}")
