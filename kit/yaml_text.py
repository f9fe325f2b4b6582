"""Read YAML of any origin: bounded, with no key twice and nothing inside itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kit.errors import ConfigError

MOST_VALUES = 100_000  # in a configuration file, aliases unfolded; the kit's own have about 60
MOST_BYTES = 1 << 20  # of a configuration file

# ValueError: bad UTF-8, a date such as 2001-99-99, a number of 5,000 digits; RecursionError: deep
# nesting; the others: tags on what does not suit them, such as `!!bool zz`
YAML_ERRORS = (
    *(yaml.YAMLError, ValueError, RecursionError),
    *(KeyError, IndexError, AttributeError, TypeError),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, of any origin; ConfigError, in one line, for everything else.

    A key that is there twice, of which YAML would take the last, is an error too.
    """
    try:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "no file"
            raise ConfigError(f"cannot read the configuration {path}: it is {kind}")
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path} has more than {MOST_BYTES} bytes: it is no configuration")
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except ConfigError:  # a ValueError, too
        raise
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{path} is not valid YAML: it is nested too deeply") from None
    except YAML_ERRORS as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, got {type(values).__name__}")
    return values


def parse_yaml(text: str) -> Any:
    """What a text of any origin says in YAML; one of YAML_ERRORS for what it must not."""
    _unfolded(yaml.compose(text, yaml.SafeLoader), {})
    return yaml.safe_load(text)


def parse_argument(text: str) -> Any:
    """What one value on a command line says in YAML. There a comment is none: where YAML would take
    only a part (`runs/a #1`), and where it cannot be read, it is the text itself."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return text.strip()
        beside = text[: node.start_mark.index] + text[node.end_mark.index :]
        if beside.strip() not in ("", "..."):  # the mark of a document's end, which `dump` writes
            return text.strip()
        return parse_yaml(text)
    except YAML_ERRORS:
        return text


def _unfolded(node: yaml.Node | None, known: dict[int, int]) -> int:
    """How many values a node stands for, aliases unfolded; ValueError for a key that is there
    twice, for more values than any configuration has, and for what is inside itself."""
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("it holds itself, by an alias")
        return known[id(node)]
    known[id(node)] = 0  # until it is counted
    children: list[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {twice!r} is there twice")
    known[id(node)] = count = 1 + sum(_unfolded(child, known) for child in children)
    if count > MOST_VALUES:
        raise ValueError(f"it stands for more than {MOST_VALUES} values")
    return count
