"""`python -m exercises`: writes the section of exercises of every notebook that has some."""

from __future__ import annotations

from pathlib import Path

from exercises.build import read_exercises, with_exercises

FOLDER = Path(__file__).parent
NOTEBOOKS = FOLDER.parent / "notebooks"


def main() -> None:
    for source in sorted(FOLDER.glob("[0-9A]*.py")):
        path = NOTEBOOKS / f"{source.stem}.ipynb"
        old = path.read_text(encoding="utf-8")
        new = with_exercises(old, read_exercises(source))
        path.write_text(new, encoding="utf-8")
        print(f"{path.name}: {'as it was' if new == old else 'written'}")


if __name__ == "__main__":
    main()
