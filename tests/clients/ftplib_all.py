"""Everything that Python's ftplib can do.

Arguments: host, port, protection (plain, explicit, implicit), CA file, password, folder, sample, new folder.
Mirrors the sample into <folder>/down, and <folder>/original into the new folder.
"""

import calendar
import ftplib
import io
import os
import pathlib
import ssl
import sys
import time

host, port, protection, authority, password, folder, sample, target = sys.argv[1:]
folder = pathlib.Path(folder)


class Implicit(ftplib.FTP_TLS):
    """ftplib has no implicit TLS: it is put around the socket before the greeting is read."""

    @property
    def sock(self):
        return self._sock

    @sock.setter
    def sock(self, plain):
        secured = plain is None or isinstance(plain, ssl.SSLSocket)
        self._sock = plain if secured else self.context.wrap_socket(plain, server_hostname=self.host)


def connect():
    context = ssl.create_default_context(cafile=authority)
    kinds = {
        "plain": ftplib.FTP,
        "explicit": lambda: ftplib.FTP_TLS(context=context),
        "implicit": lambda: Implicit(context=context),
    }
    ftp = kinds[protection]()
    ftp.connect(host, int(port), timeout=20)
    ftp.login("admin", password)
    if protection != "plain":
        ftp.prot_p()
    return ftp


def content(path, rest=None):
    pieces = []
    ftp.retrbinary("RETR " + path, pieces.append, rest=rest)
    return b"".join(pieces)


def download(remote, local):
    local.mkdir(parents=True)
    listed = list(ftp.mlsd(remote))
    # NLST gives paths that do as arguments.
    assert sorted(ftp.nlst(remote)) == sorted(f"{remote}/{name}" for name, _ in listed), remote
    for name, facts in listed:
        if facts["type"] == "dir":
            download(f"{remote}/{name}", local / name)
            continue
        found = content(f"{remote}/{name}")
        assert len(found) == int(facts["size"]) == ftp.size(f"{remote}/{name}"), name
        (local / name).write_bytes(found)
        modified = calendar.timegm(time.strptime(facts["modify"][:14], "%Y%m%d%H%M%S"))
        os.utime(local / name, (modified, modified))


def upload(local, remote):
    ftp.mkd(remote)
    for entry in local.iterdir():
        path = f"{remote}/{entry.name}"
        if entry.is_dir():
            upload(entry, path)
            continue
        with entry.open("rb") as file:
            # For TLS, ftplib ends the data connection by unwrap(), which waits for the server's close_notify.
            assert ftp.storbinary("STOR " + path, file).startswith("226"), path
        modified = time.strftime("%Y%m%d%H%M%S", time.gmtime(entry.stat().st_mtime))
        assert ftp.sendcmd(f"MFMT {modified} {path}").startswith("213"), path


def aborted(command):
    """Begins a transfer and aborts it. The server answers for the transfer, then for ABOR."""
    connection = ftp.transfercmd(command)
    connection.recv(10) if command.startswith("RETR") else connection.sendall(b"x" * 10)
    assert ftp.abort().startswith("426"), command
    connection.close()
    assert ftp.getresp().startswith("226"), command


ftp = connect()
download(sample, folder / "down")
upload(folder / "original", target)

work = target + "/work"
ftp.mkd(work)
ftp.cwd(work)
assert ftp.pwd() == work
ftp.storbinary("STOR new", io.BytesIO(b"0123456789"))
ftp.storbinary("APPE new", io.BytesIO(b"abc"))
assert content("new") == b"0123456789abc"
assert content("new", rest=4) == b"456789abc"
ftp.storbinary("STOR new", io.BytesIO(b"XYZ"), rest=11)
assert content("new") == b"0123456789aXYZ"
ftp.rename("new", 'the "renamed" one')
assert ftp.nlst() == ['the "renamed" one'], ftp.nlst()
big = bytes(range(256)) * 65536
ftp.storbinary("STOR big", io.BytesIO(big))
aborted("RETR big")
aborted("STOR half")
assert content("big") == big
ftp.delete("big")
ftp.delete('the "renamed" one')
assert ftp.nlst() == []
ftp.cwd("/")
ftp.rmd(work)
try:
    ftp.cwd(work)
    raise AssertionError("the folder is still there")
except ftplib.error_perm as error:
    assert str(error).startswith("550")
ftp.quit()
