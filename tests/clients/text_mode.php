<?php
// PHP's ftp_put and ftp_get in text mode, then in binary mode.
//
// Arguments: host, port, password, local file, remote folder. Prints what became of each transfer.
[, $host, $port, $password, $local, $folder] = $argv;
$ftp = ftp_connect($host, (int) $port, 20) or exit(1);
ftp_login($ftp, 'admin', $password) && ftp_pasv($ftp, true) && ftp_chdir($ftp, $folder) or exit(1);

function outcome(string $what, bool $done): void
{
    $code = preg_match('/Send TYPE I first/', error_get_last()['message'] ?? '') ? 504 : 0;
    echo "$what: ", $done ? 'done' : "refused, $code", "\n";
    error_clear_last();
}

echo 'listed: ', count(ftp_nlist($ftp, '.')), "\n";
outcome('text get', @ftp_get($ftp, "$local.text", 'kept.eml', FTP_ASCII));
outcome('text put', @ftp_put($ftp, 'kept.eml', $local, FTP_ASCII));
outcome('said text put', @ftp_append($ftp, 'kept.eml', $local, FTP_ASCII));
outcome('binary put', @ftp_put($ftp, 'copy.eml', $local));
outcome('binary get', @ftp_get($ftp, "$local.back", 'copy.eml'));
ftp_close($ftp);
