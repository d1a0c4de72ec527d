"""Alpha158 as pyqlib itself computes it, in an environment of its own.

    python reference.py --prices prices.npz --out alpha158.npz --environment FOLDER [--repeat 3] [--cores 1]

``prices.npz`` holds ``ts`` (UTC ms) and open, high, low, close, vwap, volume. The first run makes the virtual
environment of ``requirements.txt`` in FOLDER; later ones find it there. The script then runs itself under that
environment's Python: it writes the prices into Qlib's binary store (float32, Qlib's own format), lets Qlib's
expression engine compute the fields of ``Alpha158DL`` and writes them to ``alpha158.npz`` (``names``, ``ts``,
``values`` of shape (bars, 158), float32, and the float32 ``prices`` as Qlib read them). The last line of standard
output is one JSON object: ``bars``, ``columns``, ``seconds`` (best of ``--repeat``, the expressions alone: no start-up,
no building of the store) and ``versions``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
FIELDS = ("open", "high", "low", "close", "vwap", "volume")
FREQ = "60min"


def environment(folder: Path) -> Path:
    """Return the Python of the pinned environment, which is made when missing or made for other requirements."""
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    python, stamp = folder / "bin" / "python", folder / "requirements.sha256"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    (folder / ".gitignore").write_text("*\n")
    # without dependencies: the file lists all that the expression engine needs, and Jupyter is not among it
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, "--requirement", str(REQUIREMENTS)], check=True, stdout=sys.stderr)
    stamp.write_text(wanted)
    return python


def write_store(folder: Path, prices: dict) -> None:
    """Write Qlib's store: a calendar, one instrument, and per field a float32 file that begins with its start index."""
    import numpy as np
    import pandas as pd

    times = pd.to_datetime(prices["ts"], unit="ms").strftime("%Y-%m-%d %H:%M:%S")
    for name in ("calendars", "instruments", "features/btc"):
        (folder / name).mkdir(parents=True)
    (folder / "calendars" / f"{FREQ}.txt").write_text("\n".join(times) + "\n")
    (folder / "instruments" / "all.txt").write_text(f"BTC\t{times[0]}\t{times[-1]}\n")
    for field in FIELDS:
        values = np.concatenate([[0.0], prices[field]]).astype("<f4")
        values.tofile(folder / "features" / "btc" / f"{field}.{FREQ}.bin")


def compute(prices_file: Path, out: Path, repeat: int, cores: int) -> dict:
    """Build the store, compute the 158 expressions ``repeat`` times from cold caches, and write the result."""
    import numpy as np
    import pandas as pd
    import qlib
    from qlib.contrib.data.loader import Alpha158DL
    from qlib.data import D
    from qlib.data.cache import H

    prices = dict(np.load(prices_file))
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), prices)
        qlib.init(provider_uri=folder, region="us", kernels=cores, logging_level=40)
        fields, names = Alpha158DL.get_feature_config()
        seconds = []
        for _ in range(repeat):
            H.clear()
            started = time.perf_counter()
            frame = D.features(["BTC"], fields, freq=FREQ)
            seconds.append(time.perf_counter() - started)
        raw = D.features(["BTC"], [f"${field}" for field in FIELDS], freq=FREQ)
    ts = frame.index.get_level_values("datetime").astype("datetime64[ms]").astype(np.int64)
    np.savez(
        out,
        names=np.array(names),
        ts=ts,
        values=frame.to_numpy(np.float32),
        prices=raw.to_numpy(np.float32),
    )
    versions = {"python": sys.version.split()[0], "qlib": qlib.__version__, "pandas": pd.__version__}
    versions["numpy"] = np.__version__
    return {"bars": len(frame), "columns": len(names), "seconds": min(seconds), "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prices", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--environment", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--cores", type=int, default=1, help="Qlib's kernels")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(compute(args.prices, args.out, args.repeat, args.cores)))
        return
    python = environment(args.environment)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(python), __file__, *sys.argv[1:], "--inside"], env=clean, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
