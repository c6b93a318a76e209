"""What a file format is, and the registry of those that are known.

To add a format, add one module to `checkpoint/formats`. It defines a subclass of `FileFormat` and
ends in `register(...)`. Nothing else has to be edited: `load`, `save`, the command and its
options, error messages and the tests of all formats ask the registry. (Only docs/reference/
formats.md and README.md have to name it, and a test says what their lines are.)

    class Example(FileFormat):
        name = "example"                  # what format= and --to take
        title = "Example's own files"
        names = "told"
        suffixes = (".example",)

        def matches(self, head):
            return head.start.startswith(b"EXAMPLE")

        def read(self, source, *, values):
            import example                # an optional package: import it here, not above
            ...
            return Checkpoint(...)

        def write(self, target, new, template):
            ...
            return ["config"]             # what the file cannot hold

    register(Example())

What a format need not do, since `checkpoint/api.py` does it for all of them:
- Name the file in errors. Raise `CheckpointError` with what is wrong; any other exception becomes
  "truncated or damaged". A missing package becomes an ImportError that names `extra`.
- Ask for `config=` where the file has none (`holds_config`), and for a template.
- Show a file that cannot be read, if it has an `outline`.
- Match names, transpose kernels, check precision. `write` gets a checkpoint that fits the template.
- Replace a file atomically. `write` writes a temporary file.

What it must do:
- Trust nothing in a file. Execute nothing; charge what you allocate to an `Account` of the file's
  size (`untrusted/account.py`), before you allocate it. `tests/fuzz/cases.py` has a row for each
  format; add one.
- Read every array with the dtype, the shape and the bits of the file, and write them back so.
- Take memory for one copy of the arrays. If `write` makes another one, it iterates over
  `new.drain(field)`, which drops each array in turn.
- Say which framework wrote the file; `frameworks.py` has a row for each.

A format that adamx only reads has `writable = False` and no `write`; `instead` says what to do.

Code that several formats share is in modules whose names begin with an underscore.
"""

import abc
import dataclasses
import glob
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, TypeVar

from adamx.base.errors import InvalidValue
from adamx.base.trees import listed
from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.frameworks import Framework
from adamx.checkpoint.untrusted.account import Progress
from adamx.config.adam_config import AdamConfig

__all__ = ["FORMATS", "FileFormat", "Head", "Source", "Target", "register", "unregister"]

_HEAD = 1024  # bytes

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """The start of a checkpoint, by which its format is recognised.

    Attributes:
      path: of the file or folder, or the prefix that several files share.
      start: the first KiB; empty if it is no file.
      size: in bytes; 0 if it is no file.
      entries: the names in a folder, or of the files with the prefix; empty for a file.
    """

    path: Path
    start: bytes
    size: int
    entries: frozenset[str] = frozenset()
    _examined: dict[Callable[[Path], Any], Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> Self:
        """Look at what is there; an OSError if nothing is."""
        try:
            with path.open("rb") as file:
                return cls(path, file.read(_HEAD), os.fstat(file.fileno()).st_size)
        except OSError:
            if path.is_dir():
                return cls(path, b"", 0, frozenset(entry.name for entry in path.iterdir()))
            sharing = path.parent.glob(f"{glob.escape(path.name)}.*")
            names = frozenset() if path.exists() else frozenset(file.name for file in sharing)
            if not names:
                raise
            return cls(path, b"", 0, names)

    def describe(self) -> str:
        """What is there, in words, where no format is recognised."""
        if self.entries:
            return f"a folder with {listed(sorted(self.entries), most=5)}"
        if not self.start:
            return "an empty folder" if self.path.is_dir() else "an empty file"
        is_text = b"\0" not in self.start and self.start[:1_000].isascii()
        return "a text file" if is_text else "a file of an unknown format"

    def examine(self, function: Callable[[Path], _T]) -> _T:
        """What a function finds at the path; it is called once, whatever formats ask for it."""
        if function not in self._examined:
            self._examined[function] = function(self.path)
        return self._examined[function]


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint to be read.

    Attributes:
      path: where it is.
      config: hyperparameters to use instead of the file's; for a template, those of the checkpoint
        that is to be written; or None. Never None for a format that does not store them. For a
        format that does, `load` passes them only after reading has raised an error with
        `argument="config"`.
      progress: called with the number of bytes just read.
      optimizer: the dotted key, within the file, of the optimizer to read; None for the only one.
      weights: the dotted key of the weights that are the optimizer's; None for those that fit.
    """

    path: Path
    config: AdamConfig | None = None
    progress: Progress | None = None
    optimizer: str | None = None
    weights: str | None = None


@dataclasses.dataclass(frozen=True)
class Target:
    """A file to be written.

    Attributes:
      path: of a temporary file, which replaces the old one when all is done.
      progress: called with the number of bytes just written.
    """

    path: Path
    progress: Progress | None = None


class FileFormat(abc.ABC):
    """One way to store a checkpoint on disk.

    Attributes:
      name: what `format=` and `--to` take.
      title: what it is, for users: a few words.
      names: whether files store the names of the optimizer's variables, in a few words.
      suffixes: of file names; the longest one among all formats that a name ends in decides. Empty
        for folders.
      extra: the extra of adamx that installs what `read` or `write` import, or None.
      packages: what `write` imports of it. They are imported before anything else is done.
      template: whether `write` needs an existing file of the model to start from, or can use one.
      writable: whether there is a `write`.
      instead: how to get a file of a format that is not writable, in a clause.
      holds_config: whether files hold all hyperparameters; if not, `load` needs `config=`.
      config_of: which framework's configuration the command's `--config` takes for such files,
        "keras" or "torch"; None for either.
      has_selectors: whether a file may hold several optimizers or models, among which
        `Source.optimizer` and `Source.weights` choose.
      framework: whose names, order and layout the moments get if `template` is "optional" and
        none is given; None to write the checkpoint as it is.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    names: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    packages: ClassVar[tuple[str, ...]] = ()
    template: ClassVar[Literal["required", "optional", "none"]] = "none"
    writable: ClassVar[bool] = True
    instead: ClassVar[str] = ""
    holds_config: ClassVar[bool] = True
    config_of: ClassVar[Literal["keras", "torch"] | None] = None
    has_selectors: ClassVar[bool] = False
    framework: ClassVar[Framework | None] = None

    @abc.abstractmethod
    def matches(self, head: Head) -> bool:
        """Whether content that begins like this is of the format, whatever the file is called.

        For each file, exactly one format returns True. Look further, by `head.examine`, only if the
        start is the format's; damage found there may be raised.
        """

    @abc.abstractmethod
    def read(self, source: Source, *, values: bool) -> Checkpoint:
        """The checkpoint in a file.

        Without `values` the file is a template: only its names, shapes, dtypes and framework
        matter. Arrays need not be read, and adamx need not support the hyperparameters.
        """

    def outline(self, path: Path) -> Iterable[str]:
        """What is in a file that cannot be read: a text for each part, for users."""
        del path
        return ()

    def request_config(self, source: Source) -> CheckpointError:
        """The error where `config=` is missing and the format does not have `holds_config`.

        A format that stores some hyperparameters reads them here, and lists them and the others.
        """
        del source
        return CheckpointError(
            where="config",
            expected=f"an AdamConfig, since {self.description} holds no hyperparameters",
            remedy="pass config=AdamConfig(...), or AdamConfig.from_keras({...}, 'keras3'), with "
            "those of the run",
            argument="config",
        )

    def write(self, target: Target, new: Checkpoint, template: Source | None) -> Sequence[str]:
        """Write a file.

        Args:
          target: the file.
          new: what to write, in the names, the order, the layout and the dtypes of the template;
            `drain` may be used on it.
          template: the file of which a copy with other values is written, if there is one.

        Returns:
          What the format cannot hold: `params/<name>`, names of `extra`, "config"; and files of
          the template that are copied unchanged, though they may depend on what was written.
        """
        raise NotImplementedError(f"{self.name} is not writable")

    def check(  # noqa: B027 - most formats have no need
        self, checkpoint: Checkpoint, template: Source | None
    ) -> None:
        """Raise a CheckpointError for what no file of the format can hold, before all else."""

    @property
    def is_folder(self) -> bool:
        """Whether checkpoints in it are folders."""
        return not self.suffixes

    @property
    def description(self) -> str:
        """What it is, for users, and its first suffix or "folder"."""
        return f"{self.title} ({'folder' if self.is_folder else self.suffixes[0]})"


_REGISTRY: dict[str, FileFormat] = {}

FORMATS: Mapping[str, FileFormat] = MappingProxyType(_REGISTRY)
"""The known formats by name."""


def register(form: FileFormat) -> None:
    """Make a format known. Its name and its suffixes must be new."""
    taken = {suffix for other in FORMATS.values() for suffix in other.suffixes}
    if form.name in FORMATS or taken & set(form.suffixes):
        raise InvalidValue("another format has this name or one of its suffixes", where=form.name)
    if form.writable == (type(form).write is FileFormat.write) or form.writable == bool(
        form.instead
    ):
        raise InvalidValue(
            "expected writable=True with write(), or writable=False with instead", where=form.name
        )
    _REGISTRY[form.name] = form


def unregister(name: str) -> None:
    """Forget a format."""
    del _REGISTRY[name]
