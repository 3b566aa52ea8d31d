# What prove prints, and after it one line that counts the tests that were skipped, and why:
#
#	PERL5LIB=tests prove --formatter Skips tests/*.t
package Skips;
use strict;
use warnings;
use File::Basename;
use TAP::Formatter::Console;
use TAP::Formatter::File;
our @ISA = (-t STDOUT ? 'TAP::Formatter::Console' : 'TAP::Formatter::File');

my (%tests, %files, $tests, $whole);	# per reason: how many tests; in which files

sub note
{
	my ($why, $file, $n) = @_;
	$why ||= 'no reason given';
	$tests{$why} += $n;
	$files{$why}{basename($file)} = 1;
}

sub open_test
{
	my ($self, $file, $parser) = @_;
	$parser->callback(test => sub {
		return unless $_[0]->has_skip;
		$tests++;
		note($_[0]->explanation, $file, 1);
	});
	$parser->callback(plan => sub {
		return unless $_[0]->has_skip;
		$whole++;
		note($_[0]->explanation, $file, 0);
	});
	return $self->SUPER::open_test($file, $parser);
}

sub count { return $_[0] . ($_[0] == 1 ? " $_[1]" : " $_[1]s") }

sub summary
{
	my ($self, @args) = @_;
	$self->SUPER::summary(@args);
	my @what = ($tests ? count($tests, 'test') : (), $whole ? count($whole, 'whole file') : ());
	my @why = map {
		my $n = $tests{$_} ? count($tests{$_}, 'test') . ' of ' : '';
		"$_ ($n" . join(' ', sort keys %{ $files{$_} }) . ')'
	} sort keys %files;
	print 'skipped: ', @what ? join(' and ', @what) . ', not tested here: ' . join('; ', @why)
		: 'nothing', "\n";
}

1;
