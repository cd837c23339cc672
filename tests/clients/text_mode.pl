# Perl's Net::FTP as it begins, in text mode without a TYPE; then in binary mode.
#
# Arguments: host, port, password, local file, remote folder. Prints what became of each transfer.
use strict;
use warnings;
use Net::FTP;

my ($host, $port, $password, $local, $folder) = @ARGV;
my $ftp = Net::FTP->new($host, Port => $port, Timeout => 20, Passive => 1) or die "connecting: $@";
$ftp->login('admin', $password) or die $ftp->message;
$ftp->cwd($folder) or die $ftp->message;

sub outcome {
    my ($what, $done) = @_;
    print "$what: ", ($done ? 'done' : 'refused, ' . $ftp->code), "\n";
    return;
}

my @names = $ftp->ls;
print 'listed: ', scalar(@names), "\n";
outcome('text get', $ftp->get('kept.eml', "$local.text"));
outcome('text put', $ftp->put($local, 'kept.eml'));
$ftp->ascii;
outcome('said text put', $ftp->put($local, 'kept.eml'));
$ftp->binary;
outcome('binary put', $ftp->put($local, 'copy.eml'));
outcome('binary get', $ftp->get('copy.eml', "$local.back"));
$ftp->quit;
