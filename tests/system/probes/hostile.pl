#!/usr/bin/perl
# What an attacker inside would try, said as one line per attempt: "WORD RESULT".
# Runs in the debian image, whose perl has no compiler beside it but can make any system call.
use strict;
use warnings;
use Fcntl;
$| = 1;
my %verb = (
    calls => \&calls, watch => \&watch, trace => \&trace, files => \&files,
    terminal => \&terminal
);
my $wanted = shift @ARGV;
$verb{$wanted}->(@ARGV);

# calls FILE: lines of "NAME NUMBER ARGUMENT…"; prints NAME and the errno, or ok.
sub calls {
    open my $list, '<', $_[0] or die "$_[0]: $!";
    while (<$list>) {
        my ($name, $number, @arguments) = split;
        my $result = syscall $number + 0, map { $_ + 0 } @arguments;
        print "$name ", $result == -1 ? $! + 0 : 'ok', "\n";
    }
}

# watch STOP [trace]: until the file STOP is there, go for every other process through /proc, and
# by ptrace when told to.
# Prints each finding once: what could be opened of which foreign program, how often nothing could.
sub watch {
    my ($stop, $trace) = @_;
    my (%said, %seen, %own);
    my ($rounds, $denied) = (0, 0);
    my $say = sub { print "$_[0]\n" unless $said{$_[0]}++ };
    # A program that is not a file of this root is somebody else's.
    for my $path (glob '/bin/* /usr/bin/* /usr/sbin/* /probes/*') {
        my @file = stat $path;
        $own{"$file[0]:$file[1]"} = $path if @file;
    }
    until (-e $stop) {
        $rounds++;
        for my $path (glob '/proc/[0-9]*') {
            my ($pid) = $path =~ /(\d+)/;
            next if $pid == $$;
            my $opened = sysopen my $exe, "$path/exe", O_RDONLY;
            if (!$opened) {
                $denied++ if $!{EACCES} || $!{EPERM};
                next;
            }
            my @theirs = stat $exe;
            my $name = $own{"$theirs[0]:$theirs[1]"};
            my $where = $pid == 1 ? 'init' : $name ? 'own' : 'foreign';
            $name //= readlink("$path/exe") // '?';
            $say->("exe $where $name");
            next if $where eq 'own';
            $say->("write $where $name") if sysopen my $again, "$path/exe", O_WRONLY;
            $say->("write $where $name") if sysopen my $more, '/proc/self/fd/' . fileno($exe), O_WRONLY;
            for my $part (glob "$path/map_files/*") {
                $say->("write $where $name") if sysopen my $map, $part, O_WRONLY;
            }
            next if $where eq 'init' || !$trace || $seen{$pid}++;
            # PTRACE_SEIZE: what may be traced can be made to do anything with what it holds.
            $say->("traced $where $name") if syscall(101, 0x4206, $pid + 0, 0, 0) == 0;
        }
    }
    print "rounds $rounds\ndenied $denied\n";
}

# trace STOP: until the file STOP is there, trace all others and never let go of them.
sub trace {
    my ($stop) = @_;
    my $traced = 0;
    until (-e $stop) {
        for my $path (glob '/proc/[0-9]*') {
            my ($pid) = $path =~ /(\d+)/;
            next if $pid == $$ || $pid == 1;
            $traced++ if syscall(101, 0x4206, $pid + 0, 0, 0) == 0;
        }
    }
    print "traced $traced\n";
}

# files HOW PATH…: whether each can be read (how many bytes came) or opened for writing.
sub files {
    my ($how, @paths) = @_;
    for my $path (@paths) {
        my $opened = sysopen my $file, $path, $how eq 'read' ? O_RDONLY | O_NONBLOCK : O_WRONLY;
        if (!$opened) { print "$path error ", $! + 0, "\n"; next }
        if ($how ne 'read') { print "$path opened\n"; next }
        my $got = sysread $file, my $data, 65536;
        my $said = defined $got ? "bytes $got" : 'error ' . ($! + 0);
        print "$path $said\n";
    }
}

# terminal WORD: push WORD into every terminal in reach, as if its user had typed it.
sub terminal {
    my ($word) = @_;
    my @tries = map { ["fd$_", $_] } 0 .. 2;
    for my $path ('/dev/tty', '/dev/console', glob '/dev/pts/[0-9]*') {
        push @tries, [$path, fileno $_] for grep { defined } open_terminal($path);
    }
    for my $try (@tries) {
        my ($name, $fd) = @$try;
        my $handle;
        open $handle, '+<&=', $fd or open $handle, '<&=', $fd or next;
        my $pushed = 0;
        for my $letter (split //, "$word\n") {
            my $copy = $letter;
            $pushed++ if defined ioctl $handle, 0x5412, $copy;
        }
        print "$name pushed $pushed errno ", $! + 0, "\n";
        my $paste = "\3";
        ioctl $handle, 0x541C, $paste;
    }
}

my @kept;

sub open_terminal {
    sysopen my $handle, $_[0], O_RDWR | O_NOCTTY or return;
    push @kept, $handle;
    return $handle;
}
