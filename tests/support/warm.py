"""Run Python in new processes that need not import the hosts' libraries, which takes seconds of processor time each.

A process imports the libraries below open_clip once and forks for every run. So the start-up hook, registration and
open_clip's own import are part of each run still. Each environment has a process of its own, since libraries read
variables when they are imported.
"""

import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

# a child goes on behind the loop, so that it ends as a script does
_SERVER = """
import json, os, runpy, sys
import pandas, torch, torchvision, timm, transformers
assert 'open_clip' not in sys.modules

for line in sys.stdin:
    command, folder, log = json.loads(line)
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
if command[0] == '-c':
    sys.argv = ['-c', *command[2:]]
    exec(compile(command[1], '<string>', 'exec'), {'__name__': '__main__'})
elif command[0] == '-m':
    sys.argv = command[1:]
    runpy.run_module(command[1], run_name='__main__', alter_sys=True)
else:
    sys.argv, sys.path[0] = command, os.path.dirname(command[0])
    runpy.run_path(command[0], run_name='__main__')
"""


@functools.cache
def _server(environment: frozenset[tuple[str, str]]) -> "subprocess.Popen[str]":
    """Start the process that forks, which ends with this one, when its standard input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def run_forked(arguments: list[str], cwd: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run what ``python ARGUMENTS`` runs, and return its exit status and what it printed to both streams.

    The first argument is ``-c``, ``-m`` or a script's path.
    """
    server = _server(frozenset(environment.items()))
    with tempfile.NamedTemporaryFile() as log:
        server.stdin.write(json.dumps([arguments, str(cwd), log.name]) + "\n")
        status = server.stdout.readline()  # empty where the process that forks has ended
        return subprocess.CompletedProcess(arguments, int(status or -1), Path(log.name).read_text())
