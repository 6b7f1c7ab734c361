"""No generated file of the repository is out of date."""

from tools.generate.__main__ import GENERATORS, ROOT, stale_files


def test_every_generated_file_is_what_its_generator_writes() -> None:
    assert all(generator.files() for generator in GENERATORS)
    assert not [str(path.relative_to(ROOT)) for path in stale_files()], "run make generate"
