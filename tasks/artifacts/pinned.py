"""Sources that are identified by their content, as a path or a package's name says nothing of what is there."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Pinned(Frozen):
    """A source with the hash of its content, which `with_identity` of its kind finds and fills in."""

    content_sha256: Sha256 | None = None
    """Filled in when the profile is resolved; given in a profile, other content is refused."""

    def pinned(self, found: str, where: str, setting: str) -> Self:
        """Itself with the hash that was found.

        Args:
            found: the content's sha256, in hex.
            where: what has this content, as the user knows it.
            setting: whose content_sha256 this is, in the profile's words.

        Raises:
            BadInputError: another hash is given.
        """
        if self.content_sha256 not in (None, found):
            raise BadInputError(
                f"{where} has the content {found[:12]}, and content_sha256 of {setting} says "
                f"{str(self.content_sha256)[:12]}; restore it, or remove content_sha256 to take the new content"
            )
        return self.model_copy(update={"content_sha256": found})
