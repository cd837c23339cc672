"""What honest clients do with TLS in other orders than most.

Arguments: host, port, CA file, password, TLS (1.2, 1.3), folder with kept.eml, actions. Each action has its own session, prints one line.

early:VERB       the data connection does its handshake before the verb is sent
refused:VERB     the verb is refused: the data connection must end in order, the handshake before (early) or after the reply (late)
rapid:VERB       the same many times without a pause, each handshake begun before the verb: the last ones must end in order
notify           close_notify on the control connection must be answered
stranger         where sessions must be resumed: one that does not is closed, the client that comes later is served
kin              a second control connection that has resumed the first one's session and has not logged in
"""

import ftplib
import socket
import ssl
import sys
import time

host, port, authority, password, version, folder, *actions = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
exact = ssl.TLSVersion.TLSv1_3 if version == "1.3" else ssl.TLSVersion.TLSv1_2
context.minimum_version = context.maximum_version = exact


def connect():
    ftp = ftplib.FTP_TLS(context=context)
    ftp.connect(host, int(port), timeout=10)
    ftp.login("admin", password)
    ftp.voidcmd("TYPE I")
    ftp.prot_p()
    ftp.cwd(folder)
    return ftp


def handshake(ftp, raw, session=None):
    return context.wrap_socket(
        raw, server_hostname=host, session=session or ftp.sock.session, suppress_ragged_eofs=False
    )


def read(data):
    content = b""
    while piece := data.recv(65536):
        content += piece
    return content


def ask(ftp, line):
    ftp.putcmd(line)
    return ftp.getmultiline()[:3]


def early(verb):
    ftp = connect()
    for _ in range(3):
        data = handshake(ftp, socket.create_connection(ftp.makepasv(), timeout=10))
        first = ask(ftp, verb)
        if verb.startswith("STOR"):
            data.sendall(b"stored early")
            data.unwrap()
            content = b""
        else:
            content = read(data)
        data.close()
        last = ftp.getmultiline()[:3]
    return f"{first} {last} {len(content) > 0}"


def refused(verb):
    ftp = connect()
    codes = set()
    for is_early in (True, False, True, False):
        raw = socket.create_connection(ftp.makepasv(), timeout=10)
        if is_early:
            raw = handshake(ftp, raw)
        codes.add(ask(ftp, verb))
        # As a client that looks at its reply first.
        time.sleep(0.1)
        if not is_early:
            raw = handshake(ftp, raw)
        assert read(raw) == b""
        raw.close()
    # The session goes on.
    data = handshake(ftp, socket.create_connection(ftp.makepasv(), timeout=10))
    codes.add(ask(ftp, "RETR kept.eml"))
    assert read(data) == b"the old content"
    codes.add(ftp.getmultiline()[:3])
    return " ".join(sorted(codes))


def rapid(verb):
    ftp = connect()
    codes, left = set(), []
    for _ in range(16):
        raw = socket.create_connection(ftp.makepasv(), timeout=10)
        raw.setblocking(False)
        data = context.wrap_socket(
            raw, server_hostname=host, session=ftp.sock.session, do_handshake_on_connect=False
        )
        try:
            data.do_handshake()
        except ssl.SSLWantReadError:
            pass
        codes.add(ask(ftp, verb))
        left.append(data)
    # Clients look at both connections, and a reset is an error to them.
    for data in left[-2:]:
        data.settimeout(10)
        data.do_handshake()
        assert data.recv(1) == b""
    return " ".join(sorted(codes))


def notify():
    ftp = connect()
    ftp.sock.settimeout(5)
    # It raises where the other end closes without one.
    ftp.sock.unwrap()
    return "answered"


def stranger():
    ftp = connect()
    address = ftp.makepasv()
    closed = 0
    for _ in range(2):
        other = socket.create_connection(address, timeout=10)
        try:
            other = ssl._create_unverified_context().wrap_socket(other)
            other.recv(1)
        except OSError:
            pass
        closed += 1
    first = ask(ftp, "RETR kept.eml")
    other = socket.create_connection(address, timeout=10)
    other.sendall(b"no TLS at all\r\n")
    try:
        # Perhaps an alert first.
        read(other)
    except OSError:
        pass
    closed += 1
    time.sleep(0.5)
    data = handshake(ftp, socket.create_connection(address, timeout=10))
    content = read(data)
    return f"{closed} {first} {content.decode()} {ftp.getmultiline()[:3]}"


def kin():
    one = connect()
    if version == "1.3":
        # Its tickets come with what is read next.
        one.voidcmd("NOOP")
    two = socket.create_connection((host, int(port)), 10)
    lines = two.makefile("rb")
    lines.readline()
    two.sendall(b"AUTH TLS\r\n")
    lines.readline()
    two = context.wrap_socket(two, server_hostname=host, session=one.sock.session)
    assert two.session_reused
    two.sendall(b"NOOP\r\n")
    assert two.recv(100).startswith(b"200")
    session = two.session
    codes = []
    for gone in (False, True):
        if gone:
            two.close()
            time.sleep(0.2)
        raw = socket.create_connection(one.makepasv(), timeout=10)
        codes.append(ask(one, "RETR kept.eml"))
        data = handshake(one, raw, session)
        assert data.session_reused
        assert read(data) == b"the old content"
        codes.append(one.getmultiline()[:3])
        session = data.session if version == "1.3" else session
    return " ".join(codes)


for action in actions:
    name, _, verb = action.partition(":")
    print(action, "=", globals()[name](verb) if verb else globals()[name](), flush=True)
