"""Runs a script again and again in children of one process, which has imported what it needs: each line of the input is
a JSON list, the script and its arguments; the output has the child's process id, then how it ended.
"""

import json
import os
import runpy
import sys
import traceback

import train  # noqa: F401  (what examples/train.py imports)

for line in sys.stdin:
    script, *arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.argv = [script, *arguments]
            runpy.run_path(script, run_name="__main__")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
