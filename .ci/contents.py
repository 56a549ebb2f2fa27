"""Whether what was built has every file of the package, data included: `python .ci/contents.py dist`."""

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: What a wheel cannot be built without, or must not be given away without.
SOURCES = {"pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md"}


def package() -> set[str]:
    files = (path for path in (ROOT / "ufm").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(ROOT).as_posix() for path in files}


def built(dist: Path) -> tuple[set[str], set[str]]:
    """The files of the one wheel and of the one source distribution, as they lie in the checkout."""
    (wheel,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        unpacked = {member.name.partition("/")[2] for member in archive if member.isfile()}
    return set(zipfile.ZipFile(wheel).namelist()), unpacked


def main(dist: str) -> None:
    wheel, source = built(Path(dist))
    missing = [f"wheel: {name}" for name in sorted(package() - wheel)]
    missing += [f"source distribution: {name}" for name in sorted((package() | SOURCES) - source)]
    strays = sorted(name for name in wheel if not name.startswith(("ufm/", "ufm-")))
    if missing or strays:
        raise SystemExit(
            "\n".join([f"missing in the {m}" for m in missing] + [f"wheel: {s}?" for s in strays])
        )
    print(f"wheel and source distribution: all {len(package())} files of the package")


if __name__ == "__main__":
    main(*sys.argv[1:])
