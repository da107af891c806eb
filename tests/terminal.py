"""Runs a command in a terminal and prints what reaches it.

terminal.py <columns> <steps> <command …>: steps is a JSON list of pairs, a text to wait for and what is typed
then. A number instead of what is typed is a new width of the terminal. Exits as the command does."""
import fcntl, json, os, pty, select, struct, sys, termios, time

def resize(fd, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

columns, steps, command = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
child, terminal = pty.fork()
if child == 0:
    resize(0, columns)
    os.execv(command[0], command)
seen, start, deadline = b"", 0, time.time() + 120
while time.time() < deadline:
    if steps and steps[0][0].encode() in seen[start:]:
        start, action = len(seen), steps.pop(0)[1]
        resize(terminal, action) if isinstance(action, int) else os.write(terminal, action.encode())
    if select.select([terminal], [], [], 0.05)[0]:
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:
            break
        if not data:
            break
        seen += data
sys.stdout.buffer.write(seen)
sys.stdout.flush()
status = os.waitpid(child, 0)[1]
sys.exit(1000 if time.time() >= deadline else os.waitstatus_to_exitcode(status))
