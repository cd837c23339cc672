"""Downloads whose data connection ends in an unusual way: HOST PORT CA PASSWORD VERSION HOW:PATH...

VERSION is plain, 1.2 or 1.3. For each action one line: the final reply code, the bytes that came, and for `held` whether the
reply came while nothing was read.
"""

import ftplib
import select
import socket
import ssl
import struct
import sys
import time

host, port, authority, password, version = sys.argv[1:6]


class Data:
    """A data connection, of which a part may be read and whose TLS may end before its content has come."""

    def __init__(self, ftp, command):
        address = ftp.makepasv()
        self.raw = socket.socket()
        # Small, so that content stays on the server's side while nothing is read.
        self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        self.raw.connect(address)
        ftp.putcmd(command)
        assert ftp.getresp().startswith("150")
        self.tls = None
        if version != "plain":
            self.inward, self.outward = ssl.MemoryBIO(), ssl.MemoryBIO()
            self.tls = context.wrap_bio(self.inward, self.outward, server_hostname=host)
            while True:
                try:
                    self.tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self.raw.sendall(self.outward.read())
                    self.inward.write(self.raw.recv(65536))
            self.flush()

    def flush(self):
        self.raw.sendall(self.outward.read())

    def say_end(self):
        """Ends its own side; the bytes that had come already."""
        if self.tls is None:
            self.raw.shutdown(socket.SHUT_WR)
            return 0
        count = self.unpacked()
        try:
            self.tls.unwrap()
        except ssl.SSLError:
            pass
        self.flush()
        return count

    def send(self, content):
        if self.tls is None:
            self.raw.sendall(content)
        else:
            self.tls.write(content)
            self.flush()

    def read(self, most=None):
        """Reads to the end, or some of it; the number of bytes."""
        # Some may have come with the end of the handshake.
        count = self.unpacked() if self.tls else 0
        while most is None or count < most:
            data = self.raw.recv(65536)
            if self.tls is None:
                count += len(data)
            elif data:
                self.inward.write(data)
                count += self.unpacked()
            if not data:
                break
        return count

    def unpacked(self):
        count = 0
        while True:
            try:
                piece = self.tls.read(65536)
            # After its own end OpenSSL takes an empty buffer for the end of the other side.
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return count
            if not piece:
                return count
            count += len(piece)

    def reset(self):
        self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.raw.close()


def act(ftp, how, path):
    data = Data(ftp, f"RETR {path}")
    count, shown = 0, ""
    if how == "early":
        count = data.say_end()
        time.sleep(0.2)
    elif how == "gone":
        data.say_end()
        count = data.read(20_000)
        data.raw.close()
        return count, shown
    elif how == "reset":
        count = data.read(20_000)
        data.reset()
        return count, shown
    elif how == "swift":
        count = data.read(int(path.rsplit("/", 1)[1]))
        data.raw.close()
        return count, shown
    elif how == "stray":
        data.send(b"stray")
        time.sleep(0.2)
    elif how == "stray_between":
        count = data.read(1)
        data.send(b"stray")
    elif how == "held":
        answered = select.select([ftp.sock], [], [], 0.7)[0]
        shown = " answered" if answered else " silent"
    count += data.read()
    if how == "late":
        return count, shown, data
    data.raw.close()
    return count, shown


if version == "plain":
    ftp = ftplib.FTP()
    ftp.connect(host, int(port), timeout=20)
else:
    context = ssl.create_default_context(cafile=authority)
    context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, "TLSv" + version.replace(".", "_"))
    ftp = ftplib.FTP_TLS(context=context)
    ftp.connect(host, int(port), timeout=20)
ftp.login("admin", password)
if version != "plain":
    ftp.prot_p()
ftp.voidcmd("TYPE I")
for action in sys.argv[6:]:
    how, path = action.split(":")
    count, shown, *kept = act(ftp, how, path)
    try:
        code = ftp.getresp()[:3]
    except ftplib.Error as error:
        code = str(error)[:3]
    print(f"{code} {count}{shown}")
