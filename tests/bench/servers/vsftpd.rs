//! vsftpd: one process for each session, sendfile, no proxy. The floor.
//!
//! Who calls it: the list in `servers`, and `proftpd`, which puts its proxy before one.
//! What it calls: the program from the unpacked package.
//! What it never does: log in to system accounts. Sessions are anonymous with the right to write, because local
//! accounts would need PAM; how a session logged in makes no difference to its transfers.

use std::net::SocketAddr;

use super::{Ground, Place, Started, free_address};
use crate::Result;
use crate::client::Login;
use crate::process::Program;

pub(super) fn start(ground: &mut Ground, place: &Place) -> Result<Started> {
    let address = free_address()?;
    let program = start_at(ground, place, address)?;
    Ok(Started { programs: vec![program], login: login(address), watchers: Vec::new() })
}

pub(super) fn login(address: SocketAddr) -> Login {
    Login { address, user: "anonymous", password: "bench@example.org" }
}

/// Also for the server behind a proxy.
pub(super) fn start_at(ground: &mut Ground, place: &Place, address: SocketAddr) -> Result<Program> {
    let (first, last) = ground.passive_ports();
    let folder = place.folder.display();
    let empty = place.folder.join("empty");
    std::fs::create_dir_all(&empty)?;
    // The anonymous user needs a home that exists, which `nobody` has not.
    // The transfer log stays on, as Debian ships it: Portolan and ProFTPD write theirs too.
    let config = format!(
        "listen=YES\nlisten_ipv6=NO\nbackground=NO\nlisten_address={}\nlisten_port={}\n\
         pasv_min_port={first}\npasv_max_port={last}\n\
         anonymous_enable=YES\nlocal_enable=NO\nftp_username=daemon\nnopriv_user=nobody\nanon_root={}\n\
         write_enable=YES\nanon_upload_enable=YES\nanon_other_write_enable=YES\nanon_umask=022\n\
         anon_world_readable_only=NO\nanon_max_rate=0\nforce_dot_files=YES\n\
         max_clients=0\nmax_per_ip=0\nseccomp_sandbox=NO\nsecure_chroot_dir={}\n\
         xferlog_enable=YES\nvsftpd_log_file={folder}/transfers.log\n",
        address.ip(),
        address.port(),
        place.store.display(),
        empty.display(),
    );
    let path = place.folder.join("vsftpd.conf");
    std::fs::write(&path, config)?;
    Program::start("vsftpd", ground.packages.command("usr/sbin/vsftpd").arg(path), &place.folder)
}
