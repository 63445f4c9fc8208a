//! Small programs that send: what the tests and the lab's shell make traffic with.
//!
//! One line of JSON on standard output tells what was done, the kernel's answer
//! included. Exit codes: 0 sent, 13 refused with EPERM, 14 any other error, 2
//! usage. Starting must be fast, so there is no library for arguments here.

mod arguments;
mod became;
mod copy;
mod expired;
mod family;
mod forged;
mod handed;
mod insist;
mod lent;
mod login;
mod many;
mod moved;
mod often;
mod option;
mod packet;
mod raw;
mod ring;
mod rounds;
mod route;
mod said;
mod storm;
mod tcp;
mod tun;
mod udp;
mod uring;
mod ways;
mod workers;
mod xdp;

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;

use arguments::Arguments;

const USAGE: &str = "traffic COMMAND ...
  udp ADDR:PORT [--from PORT] [--size N] [--count N] [--connected] [--hold [--then ADDR:PORT]]
      [--call sendto|sendmsg|sendmmsg] [--lite] [--options] [--source ADDR]
      [--device NAME] [--freebind]
      with --hold once for each line on standard input; with --then from the second on
      elsewhere, whether the first was refused or not; with --options each packet has options of IPv4, or an extension header
  family NUMBER [--wait]
      a socket of another family, open until a line on standard input
  rds ADDR:PORT ADDR:PORT
      a message of RDS from one to the other
  rebind ADDR:PORT ADDR:PORT
      a datagram from the first to the second, of a socket that was connected to it at another port
  answer ADDR:PORT
      answers each datagram with the same
  receive PORT
      one datagram, and tells how long it is
  udp-many ADDR:PORT --destinations N --count N [--size N] [--from PORT] [--hold [--fresh]|--go-on]
      datagrams in turn to N addresses from ADDR on, from one socket; with --fresh each time
      to N others; with --go-on also if one is refused, and a line tells how many were
  tcp ADDR:PORT [--from PORT] [--bytes N] [--hold socket|peer] [--fast-open|--fast-open-connect]
      [--wait] [--transport mptcp|sctp|dccp|smc] [--source ADDR] [--abandon]
      [--reset] [--listened] [--freebind]
      with --abandon it ends while the kernel still has to send, with --reset by a reset;
      with --listened the socket has listened before
  serve PORT [--bytes N] [--wait] [--again] [--activated|--transport mptcp|sctp|dccp]
      accepts one connection and sends, with --again one after the other until it is
      killed; with --activated its standard input listens
  workers PORT --count N [--bytes N] [--accept parent|worker|activated]
      N processes, of which each answers one connection to one listener
      with --wait either reads to the other end's end before it ends its own
  raw ADDR [--protocol N] [--size N] [--own-header [--fragment OFFSET]]
      [--extensions N] [--sockets N] [--hops N] [--type N]
      with --sockets from as many, which no process has open until a line on standard input
  raw-flood ADDR
      such packets without a pause, whatever the kernel says, until its input ends;
      then a line tells how many went, and how many were refused
  ping ADDR [--raw] [--size N]
  packet INTERFACE MAC ADDR:PORT --from ADDR:PORT [--size N] [--count N] [--vlan ID]
      [--destinations N] [--ethertype N] [--pretend N] [--bypass-qdisc|--xdp|--macvtap] [--go-on]
      [--echo] [--wait] [--wrap vlan-9|qinq|qinq-9|mpls|pppoe|snap|lie|experiment|arp|lldp]
      [--via ADDR ... [--kind N|loose|strict]]
      frames of a packet socket, each a datagram of UDP; with --destinations in turn to
      N addresses from ADDR on, with --go-on as above; with --ethertype the frame
      says that it is something else, with --pretend only the call does; --bypass-qdisc
      leaves out traffic control, --xdp and --macvtap the packet socket; with --echo it is
      a request for an echo, of IPv4; with --wait it is opened,
      a line is printed, and another on standard input waited for
  ring INTERFACE MAC ADDR:PORT ADDR --from ADDR:PORT [--count N] [--version 2|3]
      frames by the ring of a packet socket, to the first address and to the second in turn, which
      change while they are sent
  ways SEED [--from N] [--count N] [--container] [--tun NODE] [--without PART ...]
      ways out that are drawn at random, from number N on; NODE opens tun devices
  begin ADDR:PORT
      asks for a connection, and does not wait for an answer
  route option|message|header ADDR:PORT --via ADDR ... [--kind N|loose|strict]
      [--from ADDR:PORT] [--device NAME] [--connected] [--tcp] [--finished]
      a datagram, or the beginning of a connection, by way of other addresses: as an
      option of the socket says, a control message, or the sender's own header; with
      --finished its routing header of IPv6 has been followed already
  burst ADDR:PORT --count N --from PORT --program PATH [--program PATH ...]
      [--parallel N] [--size N]
      N processes, one datagram each, from ports PORT, PORT+1, ...
  units ADDR:PORT --count N --from PORT --root CGROUP --unit TEMPLATE
      [--unit TEMPLATE ...] [--program PATH ...]
      N fresh control groups (TEMPLATE with % for the number), the first process
      of each makes a TCP connection as its first act
  insist ADDR:PORT
      datagrams and connections, on old sockets and new ones, until it is killed,
      whatever the kernel says; a line tells now and then how many it refused
  rounds UDP-PORT TCP-PORT --to ADDR [--to ADDR ...]
      datagrams, on one socket, connected ones and new ones, and connections to all
      addresses in turn, until its input ends; a line for each address and way tells
      how many went, how many were refused, and how many failed otherwise
  become ADDR:PORT [--bytes N] [--cgroup DIRECTORY] [--gid N] [--uid N] [--program PATH]
      [--datagrams|--unconnected|--mptcp] [--silent] [--hold] [--spliced] [--twice] [--first N]
      connects, or names the peer of each datagram, and says hello, changes so, and sends N bytes in one call, from a pipe with
      --spliced; with --silent it says nothing before; with --hold it waits for a line on
      standard input before it changes; with --twice it sends one byte before that; with --first the hello
      has that many bytes
  lend ADDR:PORT UID [--by udp|tcp|mptcp] [--more] [--hold] [--cgroup DIRECTORY] [--by-name]
      [--via ADDR ...]
      connects a socket as that user, of UDP-Lite unless said otherwise, and sends twice as root, also if
      nobody has answered to the user within 200 ms; with --more a word of the user's waits in the socket;
      with --by-name root says where it goes, with --via the user by which way; with --hold it waits for a line on standard input in between
  listen-lent PORT UID
      that user has a socket listen on which root has tried to send
  accept-lent PORT UID
      root answers on a connection that this user has accepted
  own ADDR:PORT UID UID
      sends by a socket of its own, as a program of the first user that is set to the second
  lend-inside ADDR:PORT --map LINE ...
      root of a user namespace with this map makes a socket, and user 1 of it sends by that
  claim-lent ADDR:PORT ADDR:PORT UID [--alone] [--first]
      a session that a user has accepted at the first from himself, who was the second for a moment
  tun-lent NAME ADDR:PORT ADDR:PORT UID NODE [--alone]
      root writes a packet from the first to the second into a tun device that this user has opened
  expire ADDR:PORT [--count N] [--rounds N] [--quiet]
      so many connections at a time to a far end that does not read, until a timer of the kernel's
      ends them; unless --quiet, others on the same processor listen and do not listen
  append ADDR:PORT UID
      root begins a datagram, and that user goes on with it
  pour BYTES
      on the connection that standard input is, in one call
  forge not|memory|root|pivoted|bound-inside|bound|bound-gone|tree PATH DIRECTORY ADDR:PORT
      [--bytes N]
      executes itself, from mounts of its own, so that it looks like PATH, and connects:
      in DIRECTORY there is another root directory, which has a program at PATH, too
  say-executed PATH ADDR:PORT
      in a user namespace of its own, says that it was executed from PATH, and connects after
      a line on standard input
  uring connect|send|sendmsg|zero-copy ADDR:PORT [--size N] [--poll]
  copy sendfile|splice|zero-copy ADDR:PORT [--bytes N]
  tun inject NAME ADDR:PORT ADDR:PORT [--size N] [--count N]
      datagrams come out of a tun device, each after a line on standard input
  tun carry NAME ADDR:PORT
      what goes into a tun device goes on in a datagram
  replace PROGRAM ADDR:PORT [--bytes N] [--fast-open] [--child]
      connects, and turns into another program, which sends that much in one call; with --fast-open
      it says something in the call that connects, with --child the program is a child
  hand-over PROGRAM ADDR:PORT ADDR:PORT [--again]
      sends to both with one socket, and has that program go on with it: send ten datagrams,
      with --again once it has connected the socket to the second by itself
  hand-on inherited|passed ADDR:PORT
      one process connects, another one sends
  share ADDR:PORT
      one process, another one and the first again each send a datagram on one socket
  turn reconnect|replace|race ADDR:PORT ADDR:PORT
      sends to both, with one socket or one descriptor; or on many, each connected to both in
      turn while it sends
  move NAMESPACE ADDR:PORT
      sends, goes to that network namespace, and sends once more and on a new socket
  option N
      sets an option of a socket by a value of so many bytes, of which the kernel reads
      the first four
  relay PORT ADDR:PORT
      one datagram to that port of the loopback interface goes on
  storm forks|namespaces|sockets ADDR:PORT --count N|--until-end
      so many processes, each gone at once; namespaces of users, mounts and networks; or
      sockets, each of which sends to one of four ports from PORT on, whatever the kernel says;
      with --until-end until standard input ends, also of control groups and executables
  storm groups CGROUP|executables PROGRAM|processes --count N [--users N]
      so many control groups, each removed at once; so many names of a program, each executed
      once; or so many processes, all there until a line on standard input, with --users twice
      as many, of so many users of a user namespace, for which it waits for a line before
  often calls ADDR:PORT --count N [--vary sockets|ports|addresses ...]
      datagrams that are all refused, on one socket and to one place unless it is to vary
  often sockets ADDR:PORT --count N
      sockets, each connected to another address from ADDR on, that send once and wait for a
      line on standard input
  often connections ADDR:PORT --count N [--hold]
      connections, each closed at once, to 250 addresses from ADDR on in turn
  login PORT UID ADDR:PORT [--count N] [--answers child|same|stranger] [--hold] [--after-logout]
      N connections, by each of which somebody logs in, and sends a datagram there from the client's
      port, by a program that he starts; --answers says which process answers in his session: a
      child of the one that has accepted, this one, or a child's child
  log SOCKET MESSAGE
      one entry for journald, and then waits for its standard input to end

ADDR is IPv4, IPv6 or mapped ([::ffff:203.0.113.10]:9). With --hold a command
waits for a line on standard input before it sends, sends once for each line,
and ends with its input.";

/// Result of a command.
type Answer = Result<(), Failure>;

/// Why a command ended early.
#[derive(Debug)]
enum Failure {
    /// The kernel said no.
    Call(&'static str, Errno),
    /// It was called wrongly.
    Usage(String),
}

/// Names the call that may fail.
trait Named<T> {
    fn named(self, call: &'static str) -> Result<T, Failure>;
}

impl<T> Named<T> for nix::Result<T> {
    fn named(self, call: &'static str) -> Result<T, Failure> {
        self.map_err(|errno| Failure::Call(call, errno))
    }
}

impl<T> Named<T> for std::io::Result<T> {
    fn named(self, call: &'static str) -> Result<T, Failure> {
        self.map_err(|error| {
            Failure::Call(
                call,
                Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
            )
        })
    }
}

/// Bytes and packets that were sent, for the line of JSON.
#[derive(Debug, Default)]
struct Sent {
    port: u16,
    packets: u64,
    bytes: u64,
}

/// Calls, of which some may have been refused.
#[derive(Debug, Default)]
struct Calls {
    made: u64,
    refused: u64,
}

impl Calls {
    /// Takes in an answer. With `goes_on`, one by which a packet was refused or dropped is no
    /// failure: the next call is made.
    fn note(&mut self, goes_on: bool, answer: Result<u64, Failure>) -> Result<u64, Failure> {
        self.made += 1;
        match answer {
            Err(Failure::Call(_, Errno::EPERM | Errno::ENOBUFS)) if goes_on => {
                self.refused += 1;
                Ok(0)
            }
            answer => answer,
        }
    }

    /// Prints what was sent, and how many calls were made.
    fn tell(&self, sent: &Sent) -> Answer {
        println!(
            "{{\"pid\":{},\"port\":{},\"bytes\":{},\"calls\":{},\"refused\":{},\"time_ns\":{}}}",
            std::process::id(),
            sent.port,
            sent.bytes,
            self.made,
            self.refused,
            now_ns()
        );
        match self.refused {
            0 => Ok(()),
            _ => std::process::exit(exit_code(Errno::EPERM).into()),
        }
    }
}

/// Nanoseconds since 1970.
fn now_ns() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos()
}

impl Sent {
    /// Prints what was sent so far.
    fn tell(&self) {
        println!(
            "{{\"pid\":{},\"port\":{},\"packets\":{},\"bytes\":{},\"time_ns\":{}}}",
            std::process::id(),
            self.port,
            self.packets,
            self.bytes,
            now_ns()
        );
    }
}

/// Waits for a line on standard input; false when it has ended.
fn told_to_proceed() -> bool {
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .is_ok_and(|length| length > 0)
}

fn run(arguments: &mut Arguments) -> Answer {
    match arguments.word("a command")?.as_str() {
        "udp" => udp::one(arguments),
        "rebind" => udp::rebind(arguments),
        "answer" => udp::answer(arguments),
        "receive" => udp::receive(arguments),
        "udp-many" => udp::many(arguments),
        "tcp" => tcp::connect(arguments),
        "serve" => tcp::serve(arguments),
        "raw" => raw::raw(arguments),
        "raw-flood" => raw::flood(arguments),
        "ping" => raw::ping(arguments),
        "packet" => packet::packet(arguments),
        "ways" => ways::ways(arguments),
        "begin" => route::begin_one(arguments),
        "route" => route::route(arguments),
        "burst" => many::burst(arguments),
        "units" => many::units(arguments),
        "insist" => insist::insist(arguments),
        "rounds" => rounds::rounds(arguments),
        "ring" => ring::ring(arguments),
        "uring" => uring::uring(arguments),
        "copy" => copy::copy(arguments),
        "tun" => tun::tun(arguments),
        "hand-on" => handed::hand_on(arguments),
        "share" => handed::share(arguments),
        "replace" => handed::replace(arguments),
        "give" => handed::give(arguments),
        "use" => handed::use_handed(arguments),
        "hand-over" => handed::hand_over(arguments),
        "go-on" => handed::go_on(arguments),
        "turn" => handed::turn(arguments),
        "move" => moved::go(arguments),
        "become" => became::become_another(arguments),
        "lend" => lent::lend(arguments),
        "listen-lent" => lent::listen_lent(arguments),
        "accept-lent" => lent::accept_lent(arguments),
        "own" => lent::own(arguments),
        "lend-inside" => lent::lend_inside(arguments),
        "append" => lent::append(arguments),
        "claim-lent" => lent::claim_lent(arguments),
        "tun-lent" => lent::tun_lent(arguments),
        "expire" => expired::expire(arguments),
        "pour" => became::pour(arguments),
        "forge" => forged::forge(arguments),
        "forge-inside" => forged::inside(arguments),
        "say-executed" => said::say_executed(arguments),
        "family" => family::open(arguments),
        "rds" => family::rds(arguments),
        "option" => option::set(arguments),
        "relay" => handed::relay(arguments),
        "workers" => workers::workers(arguments),
        "storm" => storm::storm(arguments),
        "often" => often::often(arguments),
        "log" => log(arguments),
        "login" => login::login(arguments),
        other => Err(Failure::Usage(format!("no command {other:?}"))),
    }
}

fn log(arguments: &mut Arguments) -> Answer {
    let socket = arguments.word("a socket")?;
    let message = arguments.word("a message")?;
    arguments.done()?;
    let entry = format!("MESSAGE={message}\nPRIORITY=6\n");
    let sender = std::os::unix::net::UnixDatagram::unbound().named("socket")?;
    sender.send_to(entry.as_bytes(), socket).named("sendto")?;
    // journald looks the sender's control group up after it got the entry.
    Sent::default().tell();
    while told_to_proceed() {}
    Ok(())
}

fn main() -> ExitCode {
    let mut arguments = Arguments::new(std::env::args().skip(1).collect());
    match run(&mut arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(problem)) => {
            eprintln!("traffic: {problem}\n\n{USAGE}");
            ExitCode::from(2)
        }
        Err(Failure::Call(call, errno)) => {
            println!(
                "{{\"pid\":{},\"call\":\"{call}\",\"error\":\"{errno:?}\",\"time_ns\":{}}}",
                std::process::id(),
                now_ns()
            );
            ExitCode::from(exit_code(errno))
        }
    }
}

/// The exit code for an error.
fn exit_code(errno: Errno) -> u8 {
    if errno == Errno::EPERM { 13 } else { 14 }
}
