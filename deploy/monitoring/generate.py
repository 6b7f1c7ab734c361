"""Write the dashboards: ``python deploy/monitoring/generate.py [--check]``. Edit the modules here, not the JSON."""

import argparse
import json
import sys
from pathlib import Path

import generator
import jobs
import overview
import retriever
import training

TARGET = Path(__file__).parents[1] / "helm" / "searchrl" / "dashboards"
DASHBOARDS = {"overview": overview, "retriever": retriever, "generator": generator, "training": training, "jobs": jobs}


def texts() -> dict[str, str]:
    """Return the content of each dashboard by file name."""
    return {f"{name}.json": json.dumps(module.build(), indent=1) + "\n" for name, module in DASHBOARDS.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file differs")
    is_check = parser.parse_args().check
    differing = []
    for name, text in texts().items():
        path = TARGET / name
        if path.is_file() and path.read_text() == text:
            continue
        differing.append(name)
        if not is_check:
            TARGET.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    verb = "differ" if is_check else "written"
    sys.stdout.write(f"{', '.join(differing)} {verb}\n" if differing else "the dashboards are up to date\n")
    return 1 if is_check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
