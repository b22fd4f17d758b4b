"""Weights on the disk: THE save and load. safetensors beside a config that says what they belong to; strict both ways.

A folder holds weights.safetensors and config.json; nothing is pickled, and nothing is loaded that does not fit.
The home of safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flops_fit.errors import InputError, MissingExtra

WEIGHTS, CONFIG = "weights.safetensors", "config.json"
SHIPPED = Path(__file__).resolve().parents[1] / "bundles"  # those that come with flops-fit, by name


def located(bundle: str | os.PathLike[str], argument: str = "BUNDLE") -> Path:
    """The folder of a bundle: one that comes with flops-fit, by its name, or any other (./NAME if it is called so too).

    Raises:
        InputError: neither.
    """
    shipped = sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))
    if str(bundle) in shipped:
        return SHIPPED / str(bundle)
    if Path(bundle).is_dir():
        return Path(bundle)
    raise InputError.unknown(argument, str(bundle), [*shipped, "the folder that `flops-fit train` wrote"])


def save(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, half: bool = False) -> None:
    """Write both files, each whole or not at all.

    Args:
        half: floating-point tensors in half precision, those that lose nothing by it; they come back as float32.
    """
    content = _safetensors().save({name: _stored(value, half) for name, value in tensors.items()})
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / WEIGHTS, content)
    write_json(folder / CONFIG, dict(config))


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    _replace(path, (json.dumps(content, indent=1) + "\n").encode())


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors in float32 or integers, config).

    Raises:
        InputError: a file is missing or damaged.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"{CONFIG} holds {type(config).__name__}, not an object")
        tensors = _safetensors().load((folder / WEIGHTS).read_bytes())
    except MissingExtra:
        raise
    except OSError as error:
        raise InputError(
            f"{folder}: no {Path(error.filename).name} in it; give the folder of a trained bundle"
        ) from error
    except Exception as error:  # safetensors has its own error, json another
        raise InputError(f"{folder}: damaged ({error}); train or fetch it again") from error
    broken = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
    if broken:
        raise InputError(f"{folder}: {min(broken)} holds NaN or infinity; train it again")
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}, config


def digest(folder: Path) -> str:
    """SHA-256 of the weights and what they belong to."""
    found = hashlib.sha256()
    for name in (WEIGHTS, CONFIG):
        found.update((folder / name).read_bytes())
    return found.hexdigest()


def of_kind(folder: Path, kind: str, needed: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `read` gives of a bundle of that kind, whose config says all that is needed.

    Raises:
        InputError: as `read`, or it is of another kind, or its config lacks something.
    """
    tensors, config = read(folder)
    if config.get("kind") != kind:
        raise InputError(f"{folder}: a bundle of kind {config.get('kind')!r}; allowed is {kind!r}")
    if missing := [name for name in needed if name not in config]:
        raise InputError(f"{folder}: its config lacks {', '.join(missing)}; train it again")
    return tensors, config


def fill(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Give the model exactly these tensors.

    Raises:
        InputError: one is missing, left over, or of another shape: they belong to another architecture.
    """
    own = model.state_dict()
    wrong = [f"lacks {name}" for name in own.keys() - tensors.keys()]
    wrong += [f"has {name}, which this model has not" for name in tensors.keys() - own.keys()]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape
    ]  # fmt: skip
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise InputError(f"{where}: weights of another architecture: {min(wrong)}{more}; build the model of its config")
    model.load_state_dict(dict(tensors))


def _stored(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu()
    small = value.half() if half and value.is_floating_point() else value
    return (small if bool((small == value).all()) else value).clone().contiguous()


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}.new")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingExtra.of("safetensors", "train", "to save or load weights") from error
    return safetensors.torch
