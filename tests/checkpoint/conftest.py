import pytest

from adamx.checkpoint import FORMATS, CheckpointError, load
from tests.checkpoint.damaged_files import CONFIG
from tests.checkpoint.format_cases import WRITTEN


@pytest.fixture(params=sorted(FORMATS))
def form(request):
    """Every format that can be read here."""
    return FORMATS[request.param]


@pytest.fixture(params=sorted(WRITTEN))
def written(request):
    """Every format that can be written here."""
    return FORMATS[request.param]


@pytest.fixture
def refused(tmp_path):
    """The message of the one error that a file gives."""

    def message(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        config = CONFIG if name.endswith(".weights.h5") else None
        with pytest.raises(CheckpointError) as caught:
            load(path, config=config)
        assert str(caught.value).startswith(f"{path}: ")
        assert len(str(caught.value)) < 2_000
        assert list(tmp_path.iterdir()) == [path]
        return str(caught.value)

    return message
