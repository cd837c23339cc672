# Everything that Perl's Net::FTP can do.
#
# Arguments: host, port, protection (plain, explicit, implicit), CA file, password, folder, sample, new folder.
# Mirrors the sample into <folder>/down, and <folder>/original into the new folder.
use strict;
use warnings;
use Net::FTP;

my ($host, $port, $protection, $authority, $password, $folder, $sample, $target) = @ARGV;
# In Net::FTP, SSL => 1 is implicit TLS.
my $ftp = Net::FTP->new(
    $host,
    Port        => $port,
    Timeout     => 20,
    Passive     => 1,
    SSL         => $protection eq 'implicit',
    SSL_ca_file => $authority,
) or die "connecting: $@";
if ($protection eq 'explicit') {
    $ftp->starttls or die 'AUTH TLS: ', $ftp->message;
}
ok($ftp->login('admin', $password));
ok($ftp->binary);

sub ok {
    my ($value) = @_;
    my (undef, undef, $line) = caller;
    die "line $line: ", $ftp->message unless defined $value && $value;
    return $value;
}

sub is_directory {
    my ($path) = @_;
    my $is = $ftp->cwd($path);
    ok($ftp->cwd('/'));
    return $is;
}

sub download {
    my ($remote, $local) = @_;
    mkdir $local or die "$local: $!";
    my @paths = $ftp->ls($remote);
    ok($ftp->ok);
    for my $path (@paths) {
        my $name = substr $path, length("$remote/");
        if (is_directory($path)) {
            download($path, "$local/$name");
            next;
        }
        ok($ftp->get($path, "$local/$name"));
        my $size = $ftp->size($path);
        ok(defined $size && $size == -s "$local/$name");
        my $modified = ok($ftp->mdtm($path));
        utime $modified, $modified, "$local/$name" or die "$local/$name: $!";
    }
    return;
}

sub upload {
    my ($local, $remote) = @_;
    ok($ftp->mkdir($remote));
    opendir my $entries, $local or die "$local: $!";
    for my $name (grep { $_ ne '.' && $_ ne '..' } readdir $entries) {
        if (-d "$local/$name") {
            upload("$local/$name", "$remote/$name");
        }
        else {
            ok($ftp->put("$local/$name", "$remote/$name"));
        }
    }
    return;
}

sub content {
    my ($path, $offset) = @_;
    my $found = '';
    open my $file, '>', \$found or die $!;
    ok($ftp->get($path, $file, $offset));
    close $file or die $!;
    return $found;
}

sub source {
    my ($content) = @_;
    open my $file, '<', \$content or die $!;
    return $file;
}

download($sample, "$folder/down");
upload("$folder/original", $target);

my $work = "$target/work";
ok($ftp->mkdir($work));
ok($ftp->cwd($work));
ok($ftp->pwd eq $work);
ok($ftp->put(source('0123456789'), 'new'));
ok($ftp->append(source('abc'), 'new'));
ok(content('new') eq '0123456789abc');
ok(content('new', 4) eq '456789abc');
ok($ftp->rename('new', 'the "renamed" one'));
my @names = $ftp->ls;
ok(@names == 1 && $names[0] eq 'the "renamed" one');
my $unique = ok($ftp->put_unique(source('unique'), 'ignored'));
ok(content($unique) eq 'unique');
ok($ftp->cwd('/'));
ok($ftp->rmdir($work, 1));
ok(!is_directory($work));
ok($ftp->quit);
