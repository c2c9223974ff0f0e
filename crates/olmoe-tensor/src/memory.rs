//! Aligned buffers from a pool that reuses them.
//!
//! The memory of a dropped [`Buffer`] goes to a free list of its size class, and the next buffer of that class takes it
//! from there, so a steady-state training or decoding step requests no memory from the system. Large buffers are
//! aligned to 2 MiB and request huge pages: a matrix product reads many megabytes, and with 4 KiB pages address
//! translation would bound it.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytemuck::Pod;

/// Alignment of every buffer, in bytes: one cache line, one AVX-512 register.
pub const ALIGNMENT: usize = 64;
/// Buffers of at least this size are aligned to a huge page.
const HUGE: usize = 2 << 20;
/// Size classes: eight to an octave, from 64 bytes to 2^47.
const CLASSES: usize = 8 * 42;

struct Allocation(NonNull<u8>);
// SAFETY: an allocation is plain memory that only its owner touches.
unsafe impl Send for Allocation {}

static FREE: [Mutex<Vec<Allocation>>; CLASSES] = [const { Mutex::new(Vec::new()) }; CLASSES];
static SYSTEM_REQUESTS: AtomicU64 = AtomicU64::new(0);
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The class of a size, and the bytes of every buffer of the class.
fn class_of(bytes: usize) -> (usize, usize) {
    let bytes = bytes.max(ALIGNMENT).next_multiple_of(ALIGNMENT);
    let octave = bytes.ilog2();
    // An eighth of the octave, but at least a cache line.
    let step = 1usize << (octave - 3).max(6);
    let rounded = bytes.next_multiple_of(step);
    let octave = rounded.ilog2();
    let eighth = (rounded - (1 << octave)) >> (octave - 3);
    (((octave - 6) * 8) as usize + eighth, rounded)
}

/// How often the pool has requested memory from the system.
pub fn system_requests() -> u64 {
    SYSTEM_REQUESTS.load(Ordering::Relaxed)
}

/// The most bytes that buffers asked for at once since the start of the process, or since [`restart_peak`]: each counts as the
/// size of its class, even where a larger block that was free serves it. That depends on what is computed alone, not on what
/// ran before; [`resident_peak_bytes`] has what the process occupied.
pub fn peak_bytes() -> usize {
    PEAK.load(Ordering::Relaxed)
}

/// Resets the peak to the bytes that are in buffers now, of all threads, and returns them.
pub fn restart_peak() -> usize {
    let live = LIVE.load(Ordering::Relaxed);
    PEAK.store(live, Ordering::Relaxed);
    live
}

/// The peak resident set size of this process in bytes, as the system counts it: all memory, not only buffers. `None`
/// where the system does not report it.
pub fn resident_peak_bytes() -> Option<u64> {
    kibibytes("/proc/self/status", "VmHWM:")
}

/// The number of kibibytes, as bytes, in the line of a file that begins with `name`.
fn kibibytes(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes that this process could allocate now without swapping: what the system has available, or less where the
/// control groups of the process allow less. `None` where the system does not report it; only Linux does.
pub fn available_bytes() -> Option<u64> {
    let system = kibibytes("/proc/meminfo", "MemAvailable:")?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(group_bytes(Path::new("/sys/fs/cgroup"), &groups).map_or(system, |group| group.min(system)))
}

/// What the control groups of a process, of either version, allow it to allocate: the least over its own group and
/// those above it. `groups` is the text of `/proc/self/cgroup`.
fn group_bytes(root: &Path, groups: &str) -> Option<u64> {
    let of = |line: &str| -> Option<u64> {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (base, limit, usage, cached) = match controllers {
            "" => (root.to_owned(), "memory.max", "memory.current", ["active_file ", "inactive_file "]),
            _ if controllers.split(',').any(|name| name == "memory") => {
                let cached = ["total_active_file ", "total_inactive_file "];
                (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", cached)
            }
            _ => return None,
        };
        let number = |path: PathBuf| -> Option<u64> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
        // In a container the path may be that outside of the container, of which only the root is visible.
        let folders = Path::new(path.trim_start_matches('/')).ancestors().map(|path| base.join(path));
        let left = folders.filter_map(|folder| {
            // "max" means no limit and is not a number.
            let limit = number(folder.join(limit))?;
            let usage = number(folder.join(usage)).unwrap_or(0);
            let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
            // The page cache is reclaimed when memory is needed.
            let kept = stat
                .lines()
                .filter_map(|line| cached.iter().find_map(|name| line.strip_prefix(name))?.trim().parse::<u64>().ok());
            Some(limit.saturating_sub(usage.saturating_sub(kept.sum())))
        });
        left.min()
    };
    groups.lines().filter_map(of).min()
}

/// Zeroed memory of the size of a class from the system.
fn request(bytes: usize) -> NonNull<u8> {
    SYSTEM_REQUESTS.fetch_add(1, Ordering::Relaxed);
    let align = if bytes >= HUGE { HUGE } else { ALIGNMENT };
    let layout = Layout::from_size_align(bytes, align).expect("a class size is a multiple of 64 below 2^48");
    #[cfg(target_os = "linux")]
    if bytes >= HUGE {
        // Mapped directly, so that the advice to use huge pages comes before the pages are first touched.
        // SAFETY: an anonymous private mapping at an address of the kernel's choice; the unaligned head is never used.
        unsafe {
            let p = libc::mmap(
                std::ptr::null_mut(),
                bytes + HUGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            );
            if p == libc::MAP_FAILED {
                handle_alloc_error(layout);
            }
            let aligned = p.cast::<u8>().map_addr(|a| a.next_multiple_of(HUGE));
            libc::madvise(aligned.cast(), bytes, libc::MADV_HUGEPAGE);
            return NonNull::new_unchecked(aligned);
        }
    }
    // SAFETY: the size is not zero.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
}

/// A slice aligned to 64 bytes, whose memory returns to the pool when it is dropped.
pub struct Buffer<T: Pod> {
    block: NonNull<u8>,
    len: usize,
    class: usize,
    bytes: usize,
    kind: PhantomData<T>,
}

// SAFETY: a buffer owns its memory, like a `Vec` of plain numbers.
unsafe impl<T: Pod + Send> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Pod + Sync> Sync for Buffer<T> {}

impl<T: Pod> Buffer<T> {
    /// `len` numbers with arbitrary, but initialised contents: those of the previous buffer in this memory.
    pub fn scratch(len: usize) -> Buffer<T> {
        let bytes = len.checked_mul(size_of::<T>()).expect("a buffer's size fits the address space");
        let (wanted, rounded) = class_of(bytes);
        // An allocation of up to twice the size is used rather than requesting memory when threads overlap in a new
        // way.
        let reused = (wanted..(wanted + 9).min(CLASSES)).find_map(|class| {
            let mut free = FREE[class].lock().unwrap_or_else(|e| e.into_inner());
            free.pop().map(|block| (class, block.0))
        });
        let (class, block) = reused.unwrap_or_else(|| (wanted, request(rounded)));
        let live = LIVE.fetch_add(rounded, Ordering::Relaxed) + rounded;
        PEAK.fetch_max(live, Ordering::Relaxed);
        Buffer { block, len, class, bytes: rounded, kind: PhantomData }
    }

    /// `len` zeros.
    pub fn zeroed(len: usize) -> Buffer<T> {
        let mut buffer = Buffer::scratch(len);
        bytemuck::fill_zeroes(&mut buffer);
        buffer
    }

    /// Drops all but the first `len` numbers; the size of the memory does not change.
    ///
    /// A buffer made for the largest case and truncated to the present one has the same size class in every step.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// A copy of a slice.
    pub fn copy_of(x: &[T]) -> Buffer<T> {
        let mut buffer = Buffer::scratch(x.len());
        buffer.copy_from_slice(x);
        buffer
    }
}

impl<T: Pod> Drop for Buffer<T> {
    fn drop(&mut self) {
        LIVE.fetch_sub(self.bytes, Ordering::Relaxed);
        FREE[self.class].lock().unwrap_or_else(|e| e.into_inner()).push(Allocation(self.block));
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the allocation has at least `len` initialised numbers, and every bit pattern is a number.
        unsafe { std::slice::from_raw_parts(self.block.as_ptr().cast(), self.len) }
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the buffer is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.block.as_ptr().cast(), self.len) }
    }
}

impl<T: Pod> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Buffer::copy_of(self)
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self[..self.len.min(8)];
        write!(f, "Buffer({} of {}: {shown:?})", shown.len(), self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_tight_and_monotonous() {
        let mut last = class_of(0);
        for bytes in (0..5_000).chain((5_000..50_000_000).step_by(7_777)) {
            let (class, rounded) = class_of(bytes);
            assert!(rounded >= bytes && rounded % ALIGNMENT == 0);
            assert!(bytes < 512 || rounded <= bytes + bytes / 8 + ALIGNMENT, "{bytes} became {rounded}");
            assert!(class >= last.0 && (class == last.0) == (rounded == last.1), "{bytes}");
            assert_eq!(class_of(rounded), (class, rounded));
            last = (class, rounded);
        }
        assert!(class_of(1 << 47).0 < CLASSES);
    }

    #[test]
    fn the_system_says_what_it_has() {
        if std::path::Path::new("/proc/meminfo").exists() {
            assert!(available_bytes().is_some_and(|bytes| bytes > 1 << 20));
            assert!(resident_peak_bytes().is_some_and(|bytes| bytes > 1 << 20));
        }
    }

    #[test]
    fn groups_leave_the_least_of_what_they_and_those_above_do() {
        let root = std::env::temp_dir().join(format!("olmoe-groups-{}", std::process::id()));
        let write = |name: &str, text: &str| {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("a/memory.max", "1000\n");
        write("a/memory.current", "700\n");
        write("a/memory.stat", "anon 1\nactive_file 100\ninactive_file 250\nfile 9\n");
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "600\n");
        write("memory/x/memory.limit_in_bytes", "500\n");
        write("memory/x/memory.usage_in_bytes", "600\n");
        write("memory/y/memory.limit_in_bytes", "500\n");
        write("memory/y/memory.usage_in_bytes", "450\n");
        write("memory/y/memory.stat", "inactive_file 7\ntotal_inactive_file 50\n");
        for (groups, expected) in [
            ("0::/a/b\n", Some(650)),
            ("0::/a", Some(650)),
            ("0::/a/gone/deeper\n", Some(650)),
            ("0::/\n", None),
            ("3:cpu,memory:/x\n0::/a\n", Some(0)),
            ("4:memory:/y/z\n3:cpu:/x\n", Some(100)),
            ("3:cpu:/a\n", None),
            ("", None),
            ("nonsense\n:\n", None),
        ] {
            assert_eq!(group_bytes(&root, groups), expected, "{groups:?}");
        }
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn memory_is_aligned_and_reused() {
        // A size that no other test uses.
        let len = 1_234_567;
        let first = Buffer::<f32>::zeroed(len);
        let address = first.as_ptr();
        assert_eq!(address as usize % ALIGNMENT, 0);
        drop(first);
        let again = Buffer::<f32>::scratch(len);
        assert_eq!(again.as_ptr(), address);
        assert_eq!(Buffer::<f32>::zeroed(0).len(), 0);
        assert!(Buffer::<u32>::zeroed(100).iter().all(|x| *x == 0));
    }
}
