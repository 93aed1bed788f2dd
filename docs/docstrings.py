"""The docstrings of transformers' style as the API pages read them."""

import re
from typing import Any

from griffe import Extension, Object

# "[`VAEModel`]" is a link in the documentation of transformers only.
LINK = re.compile(r"\[(`[\w.]+`)\]")
# A heading that says more than "Args:" would not be taken for one.
HEADING = re.compile(r"^Args\W+([^:]+):$", re.MULTILINE)
# The type of an argument, as in "beta (`float`, defaults to 1.0):".
KIND = re.compile(r"^(\s+\w+ )(\(.*\)):", re.MULTILINE)


class Docstrings(Extension):
    """Plain names in place of links, and a list of arguments below any heading of arguments."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            text = LINK.sub(r"\1", obj.docstring.value)
            text = KIND.sub(lambda match: f"{match[1]}{match[2].replace('`', '')}:", text)
            obj.docstring.value = HEADING.sub(lambda match: f"Arguments {match[1].rstrip(')')}:\n\nArgs:", text)
