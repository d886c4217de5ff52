//! What has happened since the start, counted by everybody at work.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident,)+) => {
        /// One number a kind of event.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $($(#[doc = $help])+ pub(crate) $name: Count,)+
        }

        impl Counters {
            /// Name, help and number of each.
            pub(crate) fn all(&self) -> Vec<(&'static str, String, u64)> {
                vec![$((stringify!($name), concat!($($help),+).trim().to_owned(), self.$name.now()),)+]
            }
        }
    };
}

counters! {
    /// Connections that were accepted.
    connections,
    /// Requests that were answered, whatever with.
    requests,
    /// Requests answered from the cache.
    hits,
    /// Requests for which the base's file had to be fetched.
    misses,
    /// Bytes of bodies that were sent.
    bytes,
    /// Connections refused because there were too many (503).
    refused_connections,
    /// Requests refused because their client loads that file already (403).
    refused_downloads,
    /// Requests refused because they are none that is served here (4xx, 5xx of this program).
    refused_requests,
    /// Connections ended because their client was too slow.
    timeouts,
    /// Replies that broke off, whoever broke them off.
    broken_off,
    /// Lines of the access log that were thrown away because the disk was too slow.
    lost_log_lines,
}

/// One number.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
