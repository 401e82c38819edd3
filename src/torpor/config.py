"""Settings at the edge: flags over environment over file over defaults, as one frozen Deployment.

Only commands import this module; every other process is handed the value.
"""

import difflib
import os
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import pydantic
import yaml

from torpor import deployment, errors

#: Of environment variables: `TORPOR_STORE_URL` is `store_url`.
PREFIX = "TORPOR_"
#: Names the file; without it, `torpor.yaml` in the working directory is read if it is there.
FILE_VARIABLE = "TORPOR_CONFIG"
FILE_NAME = "torpor.yaml"
#: Where values come from, strongest first.
SOURCES = ("flag", "environment", "file", "default")
#: A misspelt variable is at least this similar to what was meant; others are somebody else's.
_SIMILAR = 0.8

#: What a value must satisfy besides its type.
_BOUNDS: dict[str, Any] = {
    "store_url": pydantic.Field(pattern=r"^(redis|rediss|unix)://"),
    "gateway_port": pydantic.Field(ge=0, le=65_535),
    "gateway_port_step": pydantic.Field(ge=0),
    "sessions_per_node_max": pydantic.Field(ge=1),
    "activations_per_node_max": pydantic.Field(ge=1),
    "calls_in_flight_max": pydantic.Field(ge=1),
    "memory_high": pydantic.Field(gt=0, le=1),
    "memory_low": pydantic.Field(gt=0, le=1),
    # A node renews its lease several times in this span; less is shorter than ordinary pauses.
    "lease_ttl_ms": pydantic.Field(ge=1_000),
}
_FIELDS = {field.name: field for field in msgspec.structs.fields(deployment.Deployment)}
_PATHS = frozenset(name for name, field in _FIELDS.items() if field.type is pathlib.Path)


class Value(msgspec.Struct, frozen=True):
    """One setting and where it comes from."""

    value: Any
    #: One of `SOURCES`.
    source: str
    #: The flag, the variable or the file; empty for a default.
    where: str = ""


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment's settings and their origins."""

    deployment: deployment.Deployment
    #: By key, in the order of `Deployment`.
    origins: dict[str, Value]

    @property
    def files(self) -> list[str]:
        """The files that something was read from."""
        return sorted({each.where for each in self.origins.values() if each.source == "file"})


def _settings_model() -> type[pydantic.BaseModel]:
    fields: dict[str, Any] = {}
    for name, field in _FIELDS.items():
        kind = Annotated[field.type, _BOUNDS[name]] if name in _BOUNDS else field.type
        fields[name] = (kind, ... if field.required else field.default)
    return pydantic.create_model("Settings", **fields)


_Settings = _settings_model()


def load(flags: Mapping[str, Any] | None = None, *, file: pathlib.Path | None = None) -> Loaded:
    """Return the settings; `flags` are those of `--set key=value`.

    Relative paths start at the folder of the file that names them, otherwise at the working
    directory.

    Raises:
        InvalidField: a key is unknown, missing, or has a value that is not allowed; the message
            names the key and where it was found.
    """
    path = _file(file)
    layers = (
        {name: Value(value, "flag", f"--set {name}") for name, value in (flags or {}).items()},
        _environment(),
        _read(path) if path else {},
    )
    given = {name: value for layer in reversed(layers) for name, value in layer.items()}
    _refuse_unknown(given)
    settings = _checked(given)
    origins = {
        name: _expanded(name, given.get(name, Value(value, "default")), value)
        for name, value in settings.items()
    }
    if origins["memory_low"].value >= origins["memory_high"].value:
        raise errors.InvalidField(
            f"memory_low ({settings['memory_low']}) must be below memory_high "
            f"({settings['memory_high']})",
            field="memory_low",
        )
    values = {name: origin.value for name, origin in origins.items()}
    return Loaded(deployment=deployment.Deployment(**values), origins=origins)


def _file(named: pathlib.Path | None) -> pathlib.Path | None:
    """Return the file to read: one that was named must exist."""
    if named is None and os.environ.get(FILE_VARIABLE):
        named = pathlib.Path(os.environ[FILE_VARIABLE])
    if named is not None and not named.is_file():
        raise errors.InvalidField(
            f"there is no settings file {named}; name another one with --config or {FILE_VARIABLE}",
            field="config",
        )
    if named is None and pathlib.Path(FILE_NAME).is_file():
        named = pathlib.Path(FILE_NAME)
    return named.absolute() if named else None


def _read(path: pathlib.Path) -> dict[str, Value]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise errors.InvalidField(f"cannot read {path}: {error}", field="config") from error
    if not isinstance(content or {}, dict):
        raise errors.InvalidField(f"{path} must be `key: value` lines", field="config")
    return {str(key): Value(value, "file", str(path)) for key, value in (content or {}).items()}


def _environment() -> dict[str, Value]:
    found: dict[str, Value] = {}
    for variable, value in os.environ.items():
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX) or not value or variable == FILE_VARIABLE:
            continue
        if name in _FIELDS:
            found[name] = Value(value, "environment", variable)
        # Other variables of ours are no settings, so only what looks like one is refused.
        elif close := difflib.get_close_matches(name, _FIELDS, n=1, cutoff=_SIMILAR):
            raise errors.InvalidField(
                f"{variable} is no setting; did you mean {PREFIX}{close[0].upper()}?", field=name
            )
    return found


def _refuse_unknown(given: Mapping[str, Value]) -> None:
    for name, value in given.items():
        if name not in _FIELDS:
            close = difflib.get_close_matches(name, _FIELDS, n=2)
            hint = (
                f"did you mean {' or '.join(close)}?"
                if close
                else (f"the keys are {', '.join(_FIELDS)}")
            )
            raise errors.InvalidField(f"unknown key {name!r} in {value.where}; {hint}", field=name)


def _checked(given: Mapping[str, Value]) -> dict[str, Any]:
    try:
        return dict(_Settings(**{name: value.value for name, value in given.items()}))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "missing":
            raise errors.InvalidField(
                f"{name} is not set; set it in {FILE_NAME} or as {PREFIX}{name.upper()}",
                field=name,
            ) from None
        # A store's URL may hold a password, so values are not shown.
        raise errors.InvalidField(
            f"{name} in {given[name].where}: {first['msg']}", field=name
        ) from None


def _expanded(name: str, given: Value, value: Any) -> Value:
    """Return the checked value with its origin; paths become absolute."""
    if name in _PATHS:
        base = pathlib.Path(given.where).parent if given.source == "file" else pathlib.Path.cwd()
        value = base / value.expanduser()
    return Value(value, given.source, given.where)
