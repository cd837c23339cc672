//! ProFTPD with mod_proxy as a reverse proxy before vsftpd: the peer with two hops.
//!
//! Who calls it: the list in `servers`.
//! What it calls: the program from the unpacked package, and `vsftpd` for the server behind it.
//! What it never does: check a password. USER and PASS go through to the server behind.

use super::{Ground, Place, Started, free_address, vsftpd, wait_for_listener};
use crate::Result;
use crate::process::Program;

pub(super) fn start(ground: &mut Ground, place: &Place) -> Result<Started> {
    let behind = free_address()?;
    let mut server = vsftpd::start_at(ground, place, behind)?;
    // The proxy connects to the server behind it when it starts.
    wait_for_listener(behind, &mut server)?;
    let address = free_address()?;
    let (first, last) = ground.passive_ports();
    let folder = place.folder.display();
    std::fs::create_dir_all(place.folder.join("proxy"))?;
    // mod_proxy takes its TLS library from mod_tls; TLS itself stays off.
    let config = format!(
        "ServerName bench\nServerType standalone\nDefaultAddress {}\nSocketBindTight on\nPort {}\n\
         PassivePorts {first} {last}\nUser nobody\nGroup nogroup\nUseReverseDNS off\nUseIPv6 off\n\
         DelayEngine off\nWtmpLog off\nMaxInstances none\n\
         PidFile {folder}/proftpd.pid\nScoreboardFile {folder}/scoreboard\n\
         SystemLog {folder}/system.log\nTransferLog {folder}/proxied.log\n\
         ModulePath {}\nLoadModule mod_tls.c\nLoadModule mod_proxy.c\n\
         ProxyEngine on\nProxyRole reverse\nProxyTables {folder}/proxy\n\
         ProxyReverseServers ftp://{behind}\nProxyReverseConnectPolicy RoundRobin\n\
         ProxyDataTransferPolicy PASV\n",
        address.ip(),
        address.port(),
        ground.packages.path("usr/lib/proftpd").display(),
    );
    let path = place.folder.join("proftpd.conf");
    std::fs::write(&path, config)?;
    let mut command = ground.packages.command("usr/sbin/proftpd");
    let proxy =
        Program::start("proftpd", command.arg("--nodaemon").arg("--config").arg(path), &place.folder)?;
    Ok(Started { programs: vec![proxy, server], login: vsftpd::login(address), watchers: Vec::new() })
}
