//! Files of pseudo-random bytes, made quickly, and compared quickly.

use std::fs::{File, FileTimes};
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

const BLOCK: usize = 1 << 20;

/// So many pseudo-random bytes; the same for the same seed.
pub fn bytes(seed: u64, length: u64) -> Vec<u8> {
    let mut all = Vec::new();
    write_to(&mut all, seed, length);
    all
}

/// A file of so many pseudo-random bytes, the same for the same seed; it looks old.
pub fn write_bytes(path: &Path, seed: u64, length: u64) {
    let file = File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut file = BufWriter::new(file);
    write_to(&mut file, seed, length);
    file.flush().unwrap();
    drop(file);
    age(path);
}

/// Makes a file look as if it were modified long ago, and each later than the one before.
///
/// Of a file that changed within the last second httpd says that its ETag is weak; a second later the
/// same file has a strong one, and for a cache that is another file.
pub fn age(path: &Path) {
    static FILES: AtomicU64 = AtomicU64::new(1_700_000_000);
    let seconds = FILES.fetch_add(1, Ordering::Relaxed);
    set_modified(path, Duration::from_secs(seconds));
}

/// Sets a file's time of modification, counted from 1970.
pub fn set_modified(path: &Path, since_1970: Duration) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + since_1970)).unwrap();
}

/// Whether two files hold the same bytes.
pub fn same_file(one: &Path, other: &Path) -> bool {
    let open = |path: &Path| {
        File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let (mut one, mut other) = (open(one), open(other));
    if one.metadata().unwrap().len() != other.metadata().unwrap().len() {
        return false;
    }
    let (mut left, mut right) = (Vec::with_capacity(BLOCK), Vec::with_capacity(BLOCK));
    loop {
        left.clear();
        right.clear();
        let block = u64::try_from(BLOCK).unwrap();
        Read::take(&mut one, block).read_to_end(&mut left).unwrap();
        Read::take(&mut other, block).read_to_end(&mut right).unwrap();
        if left != right {
            return false;
        }
        if left.is_empty() {
            return true;
        }
    }
}

/// One random block, again and again, each time with its number and the seed in every 4 KB of it: no two
/// blocks and no two pages are alike, and a test does not wait for a generator.
fn write_to(out: &mut dyn Write, seed: u64, length: u64) {
    let mut block = vec![0; BLOCK];
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for word in block.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    let mut left = length;
    let mut number = 0u64;
    while left > 0 {
        for page in block.chunks_exact_mut(4096) {
            page[..8].copy_from_slice(&number.to_le_bytes());
        }
        let part = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        out.write_all(&block[..part]).unwrap();
        left -= u64::try_from(part).unwrap();
        number += 1;
    }
}
