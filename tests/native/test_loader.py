"""Why there is no library: said to those who run a source tree, and to those who installed."""

from adamx.native import loader


def test_a_source_tree(tmp_path):
    """A checkout that hides the package that is installed, or that nobody has built."""
    folder = tmp_path / "adamx" / "native"
    folder.mkdir(parents=True)
    (folder / "CMakeLists.txt").touch()
    reason = loader._why_absent([folder])
    assert f"imported from its source tree, {tmp_path}," in reason
    assert f"`pip install -e {tmp_path}`" in reason
    assert "another folder" in reason


def test_an_installation(tmp_path):
    assert "there was no C++ compiler when adamx was installed" in loader._why_absent([tmp_path])
