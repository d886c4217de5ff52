//! The configuration language: one row a directive.
//!
//! From the rows of `directives!` come the field that keeps what a section says, its parsing, its
//! merging, what holds when nobody says anything, httpd's command table, the texts of `httpd -L` and
//! the table in the README.

use std::ffi::CStr;
use std::fmt::Write as _;

use crate::choke::{Held, Overflow, Share, Spool};
use crate::limit::{Clients, Group, Limit, Prefixes, SectionLimit, Status, Variable};
use crate::pattern::{AddressPattern, Wildcard};
use crate::placement::{Host, Placement};
use crate::setting::{Context, Latest, Listed, Nothing, Setting, Single, Switch};
use crate::units::Bytes;

/// Where a directive may stand.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Contexts {
    /// Server, virtual host, directory (also `<Location>`, `<Files>`, `<If>`) and `.htaccess` where
    /// `AllowOverride Options` permits it.
    Everywhere,
    /// The same, but it says something only inside a section.
    Sections,
    /// Server and virtual host.
    Hosts,
    /// Server only.
    Server,
}

impl Contexts {
    /// As the manual says it.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Everywhere => "server, virtual host, directory, .htaccess (Options)",
            Self::Sections => "directory, .htaccess (Options), also in `<Limit>`",
            Self::Hosts => "server, virtual host",
            Self::Server => "server",
        }
    }
}

/// A directive: everything that is known about it.
pub struct Row {
    /// Its name, as httpd spells it.
    pub name: &'static CStr,
    /// Its arguments, as the manual spells them.
    pub arguments: &'static str,
    /// What holds when nobody says anything.
    pub default: fn() -> String,
    /// Where it may stand.
    pub contexts: Contexts,
    /// What it does, in a sentence.
    pub help: &'static CStr,
    say: Say,
}

/// Whose word it is.
enum Say {
    Section(fn(&mut Layer, &[&str], &Context<'_>) -> Result<(), String>),
    Host(fn(&mut HostLayer, &[&str], &Context<'_>) -> Result<(), String>),
}

impl Row {
    /// Takes one statement of the directive into what its section says, or its virtual host.
    ///
    /// # Errors
    /// A sentence for the administrator: the directive, what was wrong, what would be accepted.
    pub fn say(
        &self,
        section: &mut Layer,
        host: &mut HostLayer,
        words: &[&str],
        context: &Context<'_>,
    ) -> Result<(), String> {
        let said = match self.say {
            Say::Section(say) => say(section, words, context),
            Say::Host(say) => say(host, words, context),
        };
        said.map_err(|problem| {
            let name = self.name.to_string_lossy();
            if problem.starts_with('\'') {
                format!("{name}: {problem}")
            } else {
                format!("{name} {problem}: {}", self.arguments)
            }
        })
    }
}

macro_rules! directives {
    ($(#[$layer_doc:meta])* $layer:ident, $rows:ident, $say:ident; $($(#[$doc:meta])* $field:ident: $setting:ty = $default:expr,
        $name:literal, $arguments:literal, $contexts:expr, $help:literal;)*) => {
        $(#[$layer_doc])*
        #[derive(Clone, Debug, Default)]
        pub struct $layer {
            said: bool,
            $($field: $setting,)*
        }

        impl $layer {
            /// What holds in an inner one of an outer one.
            #[must_use]
            pub fn merged(outer: &Self, inner: &Self) -> Self {
                Self {
                    said: outer.said || inner.said,
                    $($field: Setting::merged(&outer.$field, &inner.$field),)*
                }
            }

            /// Whether it says anything at all.
            pub fn says_anything(&self) -> bool {
                self.said
            }

            $(
                $(#[$doc])*
                pub fn $field(&self) -> <$setting as Setting>::Held<'_> {
                    self.$field.held($default)
                }
            )*
        }

        /// Its directives, in the order of the manual.
        pub static $rows: &[Row] = &[$(
            Row {
                name: $name,
                arguments: $arguments,
                default: || $default.to_string(),
                contexts: $contexts,
                help: $help,
                say: Say::$say(|layer, words, context| {
                    layer.said = true;
                    layer.$field.say(words, context)
                }),
            },
        )*];
    };
}

/// Every directive, in the order of the manual.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    SECTION_ROWS.iter().chain(HOST_ROWS)
}

directives! {
    /// What one section of the configuration says, and after merging: what holds in it.
    Layer, SECTION_ROWS, Section;

    /// Whether requests are considered for offloading at all.
    engine: Single<Switch> = Switch::Off,
        c"OffloadEngine", "On|Off", Contexts::Everywhere,
        c"Whether requests are considered for offloading here at all";

    /// The offload hosts, in the order they were named.
    hosts: Listed<Host> = Nothing,
        c"OffloadHost", "HOST[:PORT]|URL-PREFIX [weight=N] [\"if=EXPR\"]", Contexts::Everywhere,
        c"An offload host; repeatable. 'none' forgets those of outer sections. weight=0 keeps a host known but never chooses it";

    /// How a host is chosen among several.
    policy: Single<Placement> = Placement::Hash,
        c"OffloadPolicy", "hash|rotate|random", Contexts::Everywhere,
        c"How a host is chosen: each file has one home (hash), one after the other (rotate), or by chance (random)";

    /// Files smaller than this stay on the base.
    min_size: Single<Bytes> = Bytes::new(5120),
        c"OffloadMinSize", "BYTES", Contexts::Everywhere,
        c"Smaller files stay here; bytes, or a number with K, M, G or T; 0 = no minimum";

    /// Content types that stay on the base.
    excluded_types: Listed<Wildcard> = Nothing,
        c"OffloadExcludeMimeType", "PATTERN...", Contexts::Everywhere,
        c"Content types that stay here: patterns with * and ?; repeatable. 'none' forgets those of outer sections";

    /// Programs that are served by the base.
    excluded_agents: Listed<Wildcard> = Nothing,
        c"OffloadExcludeUserAgent", "PATTERN...", Contexts::Everywhere,
        c"User-Agents that are served here: patterns with * and ?; repeatable. 'none' forgets those of outer sections";

    /// Clients that are served by the base.
    excluded_addresses: Listed<AddressPattern> = Nothing,
        c"OffloadExcludeAddress", "ADDRESS|CIDR|PATTERN...", Contexts::Everywhere,
        c"Clients that are served here: addresses, networks such as 10.0.0.0/8, or patterns such as 192.168.*; repeatable. 'none' forgets those of outer sections";

    /// Whether each decision is logged.
    debug: Single<Switch> = Switch::Off,
        c"OffloadDebug", "On|Off", Contexts::Everywhere,
        c"Log for each request in one line why it was or was not offloaded";

    /// Whether responses are throttled.
    choke: Single<Switch> = Switch::Off,
        c"Choke", "On|Off", Contexts::Everywhere,
        c"Whether responses are throttled here: the rates, bursts and summaries below hold only where this is On";

    /// Bytes a second of a connection.
    choke_rate: Single<Bytes> = Bytes::new(0),
        c"ChokeRate", "BYTES", Contexts::Everywhere,
        c"Bytes a second that a connection carries at the most, or a number with K, M or G; 0 = no limit";

    /// The variable that has the rate.
    choke_rate_env: Latest<Variable> = Nothing,
        c"ChokeRateEnv", "VARIABLE", Contexts::Everywhere,
        c"The environment variable that has the rate, if the request has it";

    /// The first bytes of a response, which go at full speed.
    choke_burst: Single<Bytes> = Bytes::new(0),
        c"ChokeBurst", "BYTES", Contexts::Everywhere,
        c"So many bytes of a response go at full speed before it is throttled";

    /// The variable that has the burst.
    choke_burst_env: Latest<Variable> = Nothing,
        c"ChokeBurstEnv", "VARIABLE", Contexts::Everywhere,
        c"The environment variable that has the burst, if the request has it";

    /// Whether each transfer is logged.
    choke_summary: Single<Switch> = Switch::Off,
        c"ChokeSummary", "On|Off", Contexts::Everywhere,
        c"A line in the error log for each transfer when it has ended: file, client, bytes, seconds, rate";

    /// Whether the kernel paces, or a worker sleeps.
    choke_pacing: Single<Switch> = Switch::On,
        c"ChokePacing", "On|Off", Contexts::Everywhere,
        c"Off: a worker writes and sleeps in turn, under ChokeMaxHeld, and the kernel does not pace";

    /// Whether TLS is encrypted as the client takes it.
    choke_pull: Single<Switch> = Switch::On,
        c"ChokePull", "On|Off", Contexts::Everywhere,
        c"Whether a file is read and encrypted as the client takes it, so that a download with TLS, or with EnableSendfile Off, holds no worker (event MPM, HTTP/1.1)";

    /// How much of what a generator makes is put into a file.
    choke_spool: Single<Spool> = Spool::OFF,
        c"ChokeSpool", "SIZE|Off", Contexts::Everywhere,
        c"So much of what a script or a proxy makes goes into a temporary file, so that it ends early and holds no worker while the client takes it";

    /// What becomes of a response that would hold one worker too many.
    choke_overflow: Single<Overflow> = Overflow::Unthrottled,
        c"ChokeOverflow", "unthrottled|refuse", Contexts::Everywhere,
        c"What becomes of a response that would have to hold a worker when ChokeMaxHeld are held: it is not throttled, or it is refused";

    /// Limits of sections, the outer ones first.
    max_concurrent: Listed<SectionLimit> = Nothing,
        c"MaxConcurrentReqs", "N [\"if=EXPR\"]", Contexts::Sections,
        c"So many requests at a time for this section, or inside <Limit> for these methods of it; the innermost that fits counts; 0 = no limit";
}

directives! {
    /// What the server says or a virtual host, and after merging: what holds in the virtual host.
    HostLayer, HOST_ROWS, Host;

    /// Connections of one client to the virtual host.
    max_per_address: Latest<Limit> = Nothing,
        c"MaxConnectionsPerIP", "N [\"if=EXPR\"]", Contexts::Hosts,
        c"So many connections at a time of one client to this virtual host; 0 = no limit";

    /// Connections of one user to the virtual host.
    max_per_user: Latest<Limit> = Nothing,
        c"MaxConnectionsPerUser", "N [\"if=EXPR\"]", Contexts::Hosts,
        c"So many connections at a time of one authenticated user to this virtual host; 0 = no limit";

    /// Connections of one client to the whole server.
    global_max_per_address: Latest<Limit> = Nothing,
        c"GlobalMaxConnectionsPerIP", "N [\"if=EXPR\"]", Contexts::Server,
        c"So many connections at a time of one client to the whole server; 0 = no limit";

    /// Connections of one user to the whole server.
    global_max_per_user: Latest<Limit> = Nothing,
        c"GlobalMaxConnectionsPerUser", "N [\"if=EXPR\"]", Contexts::Server,
        c"So many connections at a time of one authenticated user to the whole server; 0 = no limit";

    /// Rates that connections have together.
    choke_shares: Listed<Share> = Nothing,
        c"ChokeShare", "client|user|vhost RATE", Contexts::Hosts,
        c"So many bytes a second for all throttled connections of one client, of one user or of the virtual host together; repeatable. 'none' forgets those of the server";

    /// How many workers throttling may hold.
    choke_max_held: Single<Held> = Held::Percent(50),
        c"ChokeMaxHeld", "N|N%", Contexts::Server,
        c"How many workers throttling may hold at a time, or which part of MaxRequestWorkers: those that sleep, or write what a script, a proxy or HTTP/2 sends";

    /// Whether a kept-alive connection counts while it is idle.
    count_idle: Single<Switch> = Switch::On,
        c"MaxConnectionsCountIdle", "On|Off", Contexts::Hosts,
        c"Whether a kept-alive connection counts between its requests";

    /// Requests at a time of the whole server.
    load_limit_server: Latest<Limit> = Nothing,
        c"LoadLimitServer", "N [\"if=EXPR\"]", Contexts::Server,
        c"So many clients at a time for the whole server; 0 = no limit";

    /// Groups of paths, each with its limit.
    load_limits: Listed<Group> = Nothing,
        c"LoadLimit", "N PATH... [\"if=EXPR\"]", Contexts::Hosts,
        c"So many clients at a time for these paths together, and all below them; repeatable";

    /// Groups of paths, of which only the first is ever refused.
    load_limits_of_first: Listed<Group> = Nothing,
        c"LoadLimit1", "N PATH PATH... [\"if=EXPR\"]", Contexts::Hosts,
        c"The same, but only requests for the first path are refused: what belongs to a page that was let in is let in too; repeatable";

    /// Clients whom no limit concerns.
    limit_exempt: Listed<AddressPattern> = Nothing,
        c"LimitExempt", "ADDRESS|CIDR|PATTERN...", Contexts::Hosts,
        c"Clients that no limit counts or refuses; repeatable. 'none' forgets those of the server";

    /// What one client is.
    limit_client_prefix: Latest<Prefixes> = Nothing,
        c"LimitClientPrefix", "BITS BITS", Contexts::Server,
        c"How many bits of an IPv4 and of an IPv6 address make one client (32 64)";

    /// The status of a refusal.
    limit_status: Single<Status> = Status(503),
        c"LimitStatus", "CODE", Contexts::Hosts,
        c"The status of a refusal, such as 429";

    /// Whether limits only count and log.
    limit_dry_run: Single<Switch> = Switch::Off,
        c"LimitDryRun", "On|Off", Contexts::Hosts,
        c"Count and log, and refuse nobody: to try a limit before it bites";

    /// For how many clients the counters have room.
    limit_table_size: Single<Clients> = Clients(100_000),
        c"LimitTableSize", "N", Contexts::Server,
        c"For how many clients at a time the counters have room; about 90 bytes each, taken at the start";
}

impl Layer {
    /// Whether a rate that is said here can hold: throttling is not switched off in the same breath.
    pub fn may_choke(&self) -> bool {
        self.choke.held(Switch::On).is_on()
    }
}

/// The README's table of directives, in Markdown.
pub fn manual() -> String {
    let mut text =
        String::from("| directive | default | contexts | meaning |\n| --- | --- | --- | --- |\n");
    for row in rows() {
        let (name, help) = (row.name.to_string_lossy(), row.help.to_string_lossy());
        let arguments = row.arguments.replace('|', "\\|");
        let (default, contexts) = ((row.default)(), row.contexts.describe());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| `{name} {arguments}` | {default} | {contexts} | {help} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::tests::context;

    fn layer(statements: &[&str]) -> Result<Layer, String> {
        let mut layer = Layer::default();
        for statement in statements {
            let (name, words) = statement.split_once(' ').unwrap_or((statement, ""));
            let words: Vec<&str> = words.split_whitespace().collect();
            let row = rows().find(|row| row.name.to_str() == Ok(name)).unwrap();
            row.say(&mut layer, &mut HostLayer::default(), &words, &context())?;
        }
        Ok(layer)
    }

    fn texts<T: ToString>(entries: &[T]) -> Vec<String> {
        entries.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn silence_means_the_default_of_the_row() {
        let layer = Layer::default();
        assert!(!layer.engine().is_on() && !layer.debug().is_on());
        assert_eq!(layer.min_size(), Bytes::new(5120));
        assert_eq!(layer.policy(), Placement::Hash);
        assert!(layer.hosts().is_empty());
        let defaults: Vec<String> =
            SECTION_ROWS.iter().take(8).map(|row| (row.default)()).collect();
        assert_eq!(defaults, ["Off", "none", "hash", "5K", "none", "none", "none", "Off"]);
    }

    #[test]
    fn inner_section_wins_and_silence_inherits() {
        let outer =
            layer(&["OffloadEngine On", "OffloadMinSize 1M", "OffloadPolicy random"]).unwrap();
        let inner = layer(&["OffloadEngine Off", "OffloadMinSize 0"]).unwrap();
        let merged = Layer::merged(&outer, &inner);
        assert!(!merged.engine().is_on());
        assert_eq!(merged.min_size(), Bytes::new(0));
        assert_eq!(merged.policy(), Placement::Random);
        assert!(!merged.debug().is_on());
    }

    #[test]
    fn lists_add_up_from_the_outer_to_the_inner_section() {
        let outer =
            layer(&["OffloadHost cdn1 weight=2", "OffloadExcludeMimeType text/* image/*"]).unwrap();
        let inner = layer(&["OffloadHost cdn2", "OffloadExcludeMimeType audio/*"]).unwrap();
        let merged = Layer::merged(&outer, &inner);
        assert_eq!(texts(merged.hosts()), ["http://cdn1", "http://cdn2"]);
        assert_eq!(texts(merged.excluded_types()), ["text/*", "image/*", "audio/*"]);
        assert_eq!(
            texts(outer.hosts()),
            ["http://cdn1"],
            "merging must not change the outer section"
        );
    }

    #[test]
    fn none_forgets_the_outer_section_and_what_follows_counts() {
        let outer = layer(&["OffloadHost cdn1", "OffloadExcludeUserAgent *bot*"]).unwrap();
        let inner =
            layer(&["OffloadHost none", "OffloadHost cdn2", "OffloadExcludeUserAgent None"])
                .unwrap();
        let merged = Layer::merged(&outer, &inner);
        assert_eq!(texts(merged.hosts()), ["http://cdn2"]);
        assert!(merged.excluded_agents().is_empty());
        let innermost = Layer::merged(&merged, &layer(&["OffloadHost cdn3"]).unwrap());
        assert_eq!(texts(innermost.hosts()), ["http://cdn2", "http://cdn3"]);
    }

    #[test]
    fn a_host_named_again_takes_the_place_of_the_first() {
        let outer = layer(&["OffloadHost cdn1 weight=2", "OffloadHost cdn2"]).unwrap();
        let inner = layer(&["OffloadHost http://CDN1:80/ weight=0"]).unwrap();
        let merged = Layer::merged(&outer, &inner);
        assert_eq!(texts(merged.hosts()), ["http://cdn1", "http://cdn2"]);
        let path = crate::path::CanonicalPath::parse(b"/a").unwrap();
        for turn in 0..4 {
            assert_eq!(crate::placement::in_turn(merged.hosts(), turn).unwrap().name(), "cdn2");
        }
        assert_eq!(crate::placement::home(merged.hosts(), &path).unwrap().name(), "cdn2");
    }

    #[test]
    fn a_mistake_names_the_directive_the_word_and_what_would_be_accepted() {
        for (statement, sentence) in [
            ("OffloadEngine maybe", "OffloadEngine: 'maybe' is neither; use On or Off"),
            ("OffloadEngine", "OffloadEngine takes exactly one argument: On|Off"),
            ("OffloadEngine On Off", "OffloadEngine takes exactly one argument: On|Off"),
            (
                "OffloadHost",
                "OffloadHost takes at least one argument: HOST[:PORT]|URL-PREFIX [weight=N] [\"if=EXPR\"]",
            ),
            (
                "OffloadMinSize 5X",
                "OffloadMinSize: '5X' is not a size; use a whole number of bytes, or one with K, M, G or T",
            ),
            (
                "OffloadPolicy best",
                "OffloadPolicy: 'best' is no policy; use hash, rotate or random",
            ),
        ] {
            assert_eq!(layer(&[statement]).unwrap_err(), sentence);
        }
    }

    #[test]
    fn a_mistake_leaves_what_was_said_before() {
        let mut layer = layer(&["OffloadHost cdn1"]).unwrap();
        let row = rows().find(|row| row.name == c"OffloadHost").unwrap();
        let words = ["cdn2", "weight=x"];
        assert!(row.say(&mut layer, &mut HostLayer::default(), &words, &context()).is_err());
        assert_eq!(texts(layer.hosts()), ["http://cdn1"]);
    }

    #[test]
    fn the_readme_has_the_table_that_the_rows_make() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
        let readme = std::fs::read_to_string(file).unwrap();
        let (begin, end) = ("<!-- directives: begin -->\n", "<!-- directives: end -->");
        let (before, rest) = readme.split_once(begin).unwrap();
        let (table, after) = rest.split_once(end).unwrap();
        if std::env::var_os("UPDATE_README").is_some() {
            std::fs::write(file, format!("{before}{begin}{}{end}{after}", manual())).unwrap();
        } else {
            assert_eq!(table, manual(), "run `make readme`");
        }
    }
}
