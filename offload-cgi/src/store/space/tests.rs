//! What is worth least goes, and that is better than what was used least recently.

// Models count in floating point.
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]

use std::collections::HashMap;

use super::*;

#[test]
fn large_idle_and_rarely_wanted_things_are_worth_less() {
    let usual = worth(10, 1 << 20, 100.0);
    assert!(worth(10, 1 << 30, 100.0) < usual);
    assert!(worth(10, 1 << 20, 1000.0) < usual);
    assert!(worth(1, 1 << 20, 100.0) < usual);
    assert!(worth(0, 0, 0.0).is_finite());
}

#[test]
fn what_was_used_before_the_clock_was_set_back_is_not_worth_most() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let day = Duration::from_secs(86_400);
    let used_at = |used| {
        let found = Found { key: String::new(), generations: Vec::new(), size: 1, used, uses: 1 };
        found.worth(now)
    };
    assert!(used_at(now + day) < used_at(now - day));
    assert!(used_at(now - day) < used_at(now));
}

#[test]
fn what_folders_take_is_counted_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("usage");
    let one = Usage::open(&path).unwrap();
    one.change(7, |bytes| bytes + 100);
    one.change(4095, |bytes| bytes + 1);
    one.change(4096, |bytes| bytes + 5000);
    drop(one);
    let other = Usage::open(&path).unwrap();
    assert_eq!(other.total(), 101);
    other.change(7, |bytes| bytes.saturating_sub(200));
    assert_eq!(other.total(), 1);
}

/// A cache in memory that is asked for one file after the other; time is the number of the request.
struct Model {
    room: u64,
    taken: u64,
    /// Of each file that is there: when it was used last, and how often.
    files: HashMap<usize, (u64, u64)>,
    order: Vec<usize>,
}

/// Hits, and hits in bytes, of a hundred.
type Rates = (f64, f64);

/// Runs a trace of (file, size) through a cache with so much room. `worth_of` is what a file is worth; the
/// least of `sample` files drawn by lot goes, or of all when that is `None`.
fn run(
    trace: &[(usize, u64)],
    room: u64,
    sample: Option<usize>,
    worth_of: impl Fn(u64, u64, u64) -> f64,
) -> Rates {
    let mut model = Model { room, taken: 0, files: HashMap::new(), order: Vec::new() };
    let sizes: HashMap<usize, u64> = trace.iter().copied().collect();
    let (mut hits, mut bytes_hit, mut bytes) = (0u64, 0u64, 0u64);
    let mut seed = 1u64;
    for (now, &(file, size)) in (1u64..).zip(trace) {
        bytes += size;
        if let Some((used, uses)) = model.files.get_mut(&file) {
            (*used, *uses) = (now, *uses + 1);
            hits += 1;
            bytes_hit += size;
            continue;
        }
        while model.taken + size > model.room && !model.order.is_empty() {
            let mut draw = || {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                usize::try_from(seed >> 33).unwrap() % model.order.len()
            };
            let places: Vec<usize> = match sample {
                Some(sample) => (0..sample).map(|_| draw()).collect(),
                None => (0..model.order.len()).collect(),
            };
            let least = places.into_iter().min_by(|one, other| {
                let value = |place: usize| {
                    let file = model.order[place];
                    let (used, uses) = model.files[&file];
                    worth_of(uses, sizes[&file], now - used)
                };
                value(*one).total_cmp(&value(*other))
            });
            let gone = model.order.swap_remove(least.unwrap());
            model.files.remove(&gone);
            model.taken -= sizes[&gone];
        }
        if size <= model.room {
            model.files.insert(file, (now, 1));
            model.order.push(file);
            model.taken += size;
        }
    }
    let rate = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
    (rate(hits, trace.len() as u64), rate(bytes_hit, bytes))
}

/// Requests for `files` files after Zipf's law (exponent 0.9), of sizes from 10 KB to 1 GB, whose logarithms
/// are uniform.
fn zipf(files: usize, requests: usize) -> Vec<(usize, u64)> {
    let mut seed = 42u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 11) as f64 / (1u64 << 53) as f64
    };
    let sizes: Vec<u64> = (0..files).map(|_| (1e4 * 10f64.powf(5.0 * random())) as u64).collect();
    let mut sums = Vec::with_capacity(files);
    let mut sum = 0.0;
    for rank in 1..=files {
        sum += (rank as f64).powf(-0.9);
        sums.push(sum);
    }
    (0..requests)
        .map(|_| {
            let drawn = random() * sum;
            let file = sums.partition_point(|&at| at < drawn).min(files - 1);
            (file, sizes[file])
        })
        .collect()
}

#[test]
fn more_is_hit_than_with_lru() {
    let trace = zipf(1500, 20_000);
    let mut sizes: HashMap<usize, u64> = HashMap::new();
    sizes.extend(trace.iter().copied());
    let all: u64 = sizes.values().sum();
    for share in [1, 5, 20] {
        let room = all / 100 * share;
        let lru = run(&trace, room, None, |_, _, idle| -(idle as f64));
        let ours =
            run(&trace, room, Some(SAMPLE), |uses, size, idle| worth(uses, size, idle as f64));
        println!(
            "room for {share} % of the bytes: {:.1} % of the requests hit ({:.1} % of the bytes); \
             LRU: {:.1} % ({:.1} %)",
            ours.0, ours.1, lru.0, lru.1
        );
        assert!(ours.0 > lru.0, "{ours:?} {lru:?}");
    }
}
