"""Every error clipsight raises on purpose.

    ClipsightError
    ├── ModelError         (ValueError)     a model folder, card or weights that cannot be used
    ├── ImageError         (ValueError)     a picture that is not H x W x 3 uint8
    ├── BackendError       (RuntimeError)   a runtime that cannot open or run the model
    │   └── BackendMissing (ImportError)    ... because it is not installed; says the install line
    ├── LabelError         (ValueError)     a bank, a word list or words that cannot be used
    │   └── SpaceMismatch                   ... because the bank belongs to another embedding space
    ├── SourceError        (OSError)        a camera, file or folder that cannot be opened or fails
    └── SinkError          (OSError)        an output that cannot be opened or written

Each is also the builtin in brackets, so code that knows nothing of clipsight can catch it. The message is one line and
ends with what to do.
"""


class ClipsightError(Exception):
    """Root of the tree."""


class ModelError(ClipsightError, ValueError):
    """A model folder, its card or its weights cannot be used."""


class ImageError(ClipsightError, ValueError):
    """A picture is not H x W x 3 uint8 BGR."""


class BackendError(ClipsightError, RuntimeError):
    """A runtime cannot open the model, or failed while running it."""


class BackendMissing(BackendError, ImportError):
    """A runtime asked for by name is not installed; the message is the install line."""


class LabelError(ClipsightError, ValueError):
    """A label bank, a word list or words cannot be used."""


class SpaceMismatch(LabelError):
    """The bank was made in another embedding space than the model's."""


class SourceError(ClipsightError, OSError):
    """A source cannot be opened, or failed while it was read."""


class SinkError(ClipsightError, OSError):
    """An output cannot be opened or written."""
