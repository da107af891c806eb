"""Runs a command in a terminal and prints what reaches it.

terminal.py <columns> <steps> <command …>: steps is a JSON list of lists: a text to wait for, what is typed then,
and for how many seconds nothing must have come before. A number instead of what is typed is a new width of the
terminal. Exits as the command does."""
import fcntl, json, os, pty, select, signal, struct, sys, termios, time

def resize(fd, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

columns, steps, command = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
child, terminal = pty.fork()
if child == 0:
    resize(0, columns)
    os.execv(command[0], command)
seen, start, last, deadline = b"", 0, time.time(), time.time() + 120
while time.time() < deadline:
    if steps:
        text, action, quiet = steps[0]
        if text.encode() in seen[start:] and time.time() - last >= quiet:
            start = len(seen)
            resize(terminal, action) if isinstance(action, int) else os.write(terminal, action.encode())
            steps.pop(0)
    if select.select([terminal], [], [], 0.05)[0]:
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:
            break
        if not data:
            break
        seen += data
        last = time.time()
sys.stdout.buffer.write(seen)
sys.stdout.flush()
if time.time() >= deadline:
    os.kill(child, signal.SIGKILL)
status = os.waitpid(child, 0)[1]
sys.exit(os.waitstatus_to_exitcode(status))
