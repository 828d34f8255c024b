"""Run Python in new processes that need not import the hosts' libraries, which takes seconds of processor time each.

A process imports the libraries below open_clip once and forks for every run. So the start-up hook, registration and
open_clip's own import are part of each run still. Environment variables that libraries read when they are imported
cannot be changed; use :func:`support.common.run_python` for those, and where a new interpreter is the point.
"""

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from support.common import plain_environment

_SERVER = """
import json, os, sys
import torch, torchvision, timm, transformers
assert 'open_clip' not in sys.modules

for line in sys.stdin:
    code, folder, log = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.chdir(folder)
output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
for stream, place in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
    os.dup2(place, stream)
exec(compile(code, '<string>', 'exec'), {'__name__': '__main__'})
"""


@functools.cache
def _server() -> "subprocess.Popen[str]":
    """Start the process that forks, which ends with this one, when its standard input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        env=plain_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def run_warm(code: str, cwd: Path) -> str:
    """Run ``code`` in ``cwd`` and return what it printed to standard output and error; fail unless it ends with 0."""
    server = _server()
    with tempfile.NamedTemporaryFile() as log:
        server.stdin.write(json.dumps([code, str(cwd), log.name]) + "\n")
        status = server.stdout.readline().strip()
        output = Path(log.name).read_text()
    assert status == "0", f"ended with {status or 'its server'}:\n{output[-6000:]}"
    return output
