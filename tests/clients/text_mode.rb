# Ruby's Net::FTP in text mode, then in binary mode.
#
# Arguments: host, port, password, local file, remote folder. Prints what became of each transfer.
require 'net/ftp'

host, port, password, local, folder = ARGV
ftp = Net::FTP.new
ftp.passive = true
ftp.connect(host, port.to_i)
ftp.login('admin', password)
ftp.chdir(folder)

def outcome(what)
  yield
  puts "#{what}: done"
rescue Net::FTPError => e
  puts "#{what}: refused, #{e.message[0, 3]}"
end

puts "listed: #{ftp.nlst.size}"
outcome('text get') { ftp.gettextfile('kept.eml', "#{local}.text") }
outcome('text put') { ftp.puttextfile(local, 'kept.eml') }
outcome('said text put') { ftp.storlines('STOR kept.eml', File.open(local)) }
outcome('binary put') { ftp.put(local, 'copy.eml') }
outcome('binary get') { ftp.get('copy.eml', "#{local}.back") }
ftp.quit
