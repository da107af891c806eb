"""Writes tests/fixtures/audio_models/<family>.json from families/<family>.py.

    python scripts/fixtures_audio [family …]

needs mlx==0.32.2, mlx-lm==0.32.2, mlx-audio==0.6.2, transformers==5.24 and torch, and for some families the packages
of their authors. Expected numbers come from these, never from us.

Weights and samples are a formula of their names (see scripts/fixtures/reference.py), so a fixture holds names, shapes
and expected numbers only. Numbers of long outputs are a digest: the shape, the mean, the deviation, and the values at
the flat indices i·(n − 1)//31.
"""

import importlib
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "fixtures")]
FIXTURES = FOLDER.parent.parent / "tests" / "fixtures" / "audio_models"


def main() -> None:
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for family in sys.argv[1:] or sorted(path.stem for path in (FOLDER / "families").glob("*.py")):
        cases = importlib.import_module(f"families.{family}").cases()
        lines = [json.dumps(case, separators=(",", ":")) for case in cases]
        path = FIXTURES / f"{family}.json"
        path.write_text('{"cases": [\n' + ",\n".join(lines) + "\n]}\n")
        print(f"{path.name}: {len(lines)} cases, {path.stat().st_size / 1024:.0f} KB")


main()
