"""A dmsetup that replays what real ones said. Put first on PATH by `conftest.fake_dmsetup`.

Reads its part from the JSON file in $FAKE_DMSETUP: a list of answers, each for calls whose words
begin with `words`; one with `times` is used that often. Notes each call in the file beside it.
"""

import json
import os
import sys
import time
from pathlib import Path

script = Path(os.environ["FAKE_DMSETUP"])
words = sys.argv[1:]
stdin = sys.stdin.read()
with script.with_suffix(".calls").open("a") as calls:
    noted = {key: os.environ.get(key) for key in ("LC_ALL", "DM_DISABLE_UDEV")}
    calls.write(json.dumps({"words": words, "stdin": stdin, "env": noted}) + "\n")
answers = json.loads(script.read_text())
for answer in answers:
    if words[: len(answer["words"])] != answer["words"] or answer.get("times") == 0:
        continue
    if "times" in answer:
        answer["times"] -= 1
        script.write_text(json.dumps(answers))
    time.sleep(answer.get("sleep", 0))
    sys.stdout.write(answer.get("stdout", ""))
    sys.stderr.write(answer.get("stderr", ""))
    sys.exit(answer.get("code", 0))
sys.stderr.write(f"fake dmsetup: nothing recorded for {words}\n")
sys.exit(99)
