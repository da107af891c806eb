//! A file that is being downloaded and the record of the byte ranges received, in memory and on
//! disk, so that a download resumes without fetching a byte twice.

use crate::error::{Error, Result};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    ops::Range,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A set of byte positions, as a map from the start of each range to its end. The ranges are disjoint
/// and do not touch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ByteRanges(BTreeMap<u64, u64>);

impl ByteRanges {
    /// Adds a range; it may overlap others.
    pub fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        while let Some((&s, &e)) = self.0.range(..=end).next_back().filter(|(_, e)| **e >= start) {
            self.0.remove(&s);
            (start, end) = (start.min(s), end.max(e));
        }
        self.0.insert(start, end);
    }

    /// The number of bytes in the set.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// The length of the prefix without a gap.
    pub fn prefix(&self) -> u64 {
        self.0.get(&0).copied().unwrap_or(0)
    }

    /// The ranges that a file of this size lacks.
    pub fn gaps(&self, size: u64) -> Vec<Range<u64>> {
        let starts = self.0.keys().copied().chain([size]);
        let ends = [0].into_iter().chain(self.0.values().copied());
        ends.zip(starts).map(|(end, start)| end..start).filter(|gap| gap.start < gap.end).collect()
    }
}

/// A file that is being downloaded, and beside it the record of the ranges received. The bytes are
/// written before the record, so the record is never ahead of them when the process is killed.
pub(super) struct PartialDownload {
    pub file: File,
    /// The ranges received.
    pub received: ByteRanges,
    /// The server's `ETag`, which identifies the version of the file.
    pub version: Option<String>,
    record: File,
    record_path: PathBuf,
    /// Ranges that are not in the record yet.
    pending: ByteRanges,
    last_recorded: Instant,
}

const FIRST_LINE: &str = "mynah 1";

impl PartialDownload {
    /// Opens the partial file at `path` to resume it, or creates it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path, size: u64) -> Result<Self> {
        let record_path = record_path(path);
        let known = read_record(path, size);
        let (received, version) = known.clone().unwrap_or_default();
        if known.is_none() {
            delete(path)?;
        }
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(Error::io(path))?;
        file.set_len(size).map_err(Error::io(path))?;

        // A crash may have cut the last line, so the record is written anew and not appended to.
        let mut text = format!("{FIRST_LINE}\nsize {size}\n");
        if let Some(version) = &version {
            text += &format!("version {version}\n");
        }
        for (start, end) in &received.0 {
            text += &format!("{start} {end}\n");
        }
        let new = record_path.with_extension("new");
        fs::write(&new, text).map_err(Error::io(&new))?;
        fs::rename(&new, &record_path).map_err(Error::io(&record_path))?;
        let record = OpenOptions::new().append(true).open(&record_path);
        Ok(PartialDownload {
            file,
            received,
            version,
            record: record.map_err(Error::io(&record_path))?,
            record_path,
            pending: ByteRanges::default(),
            last_recorded: Instant::now(),
        })
    }

    /// The number of bytes of the file at `path` that earlier attempts received.
    pub fn received_at(path: &Path, size: u64) -> u64 {
        read_record(path, size).map_or(0, |(received, _)| received.len())
    }

    /// Notes that these bytes are in the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add(&mut self, range: Range<u64>) -> Result<()> {
        self.received.insert(range.clone());
        self.pending.insert(range);
        const INTERVAL: Duration = Duration::from_millis(100);
        const BYTES: u64 = 2 << 20;
        if self.pending.len() >= BYTES || self.last_recorded.elapsed() >= INTERVAL {
            self.record()?;
        }
        Ok(())
    }

    /// Notes the version of the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_version(&mut self, version: String) -> Result<()> {
        self.append(&format!("version {version}\n"))?;
        self.version = Some(version);
        Ok(())
    }

    /// Appends the pending ranges to the record.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn record(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.last_recorded = Instant::now();
        let lines: String =
            pending.0.iter().map(|(start, end)| format!("{start} {end}\n")).collect();
        self.append(&lines)
    }

    fn append(&mut self, lines: &str) -> Result<()> {
        self.record.write_all(lines.as_bytes()).map_err(Error::io(&self.record_path))
    }
}

/// Deletes the file at `path` and its record.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn delete(path: &Path) -> Result<()> {
    for path in [&record_path(path), path] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn record_path(path: &Path) -> PathBuf {
    path.with_extension("ranges")
}

/// The ranges and the version in the record of the file at `path`; `None` if the file or a valid
/// record is missing.
fn read_record(path: &Path, size: u64) -> Option<(ByteRanges, Option<String>)> {
    if fs::metadata(path).ok()?.len() != size {
        return None;
    }
    let text = fs::read_to_string(record_path(path)).ok()?;
    let (whole_lines, _) = text.rsplit_once('\n')?;
    let mut lines = whole_lines.lines();
    let size_line = format!("size {size}");
    if lines.next() != Some(FIRST_LINE) || lines.next() != Some(size_line.as_str()) {
        return None;
    }
    let (mut received, mut version) = (ByteRanges::default(), None);
    for line in lines {
        let (word, rest) = line.split_once(' ')?;
        if word == "version" {
            version = Some(rest.to_string());
            continue;
        }
        let (start, end): (u64, u64) = (word.parse().ok()?, rest.parse().ok()?);
        if start >= end || end > size {
            return None;
        }
        received.insert(start..end);
    }
    Some((received, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_ranges_equal_a_bitmap() {
        // The reference is one bit for each byte.
        let (mut ranges, mut bits) = (ByteRanges::default(), [false; 60]);
        let mut random = 12345u64;
        for _ in 0..400 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (start, length) = ((random >> 33) % 60, (random >> 50) % 7);
            let end = (start + length).min(60);
            ranges.insert(start..end);
            bits[start as usize..end as usize].fill(true);
            assert_eq!(ranges.len(), bits.iter().filter(|bit| **bit).count() as u64);
            let prefix = bits.iter().take_while(|bit| **bit).count() as u64;
            assert_eq!(ranges.prefix(), prefix);
            let missing: Vec<u64> = ranges.gaps(60).into_iter().flatten().collect();
            let expected: Vec<u64> = (0..60).filter(|i| !bits[*i as usize]).collect();
            assert_eq!(missing, expected);
            if bits.iter().filter(|bit| **bit).count() > 50 {
                (ranges, bits) = (ByteRanges::default(), [false; 60]);
            }
        }
    }

    #[test]
    fn a_reopened_download_knows_the_received_ranges() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc.mynah.incomplete");
        let mut partial = PartialDownload::open(&path, 100).unwrap();
        partial.set_version("\"v1\"".into()).unwrap();
        partial.add(10..20).unwrap();
        partial.add(20..30).unwrap();
        partial.add(90..100).unwrap();
        partial.record().unwrap();
        drop(partial);
        assert_eq!(PartialDownload::received_at(&path, 100), 30);
        let again = PartialDownload::open(&path, 100).unwrap();
        assert_eq!(again.received.gaps(100), [0..10, 30..90]);
        assert_eq!(again.version.as_deref(), Some("\"v1\""));
        drop(again);

        // A line cut by a crash is ignored, and lines after it are read.
        let record = record_path(&path);
        let mut file = OpenOptions::new().append(true).open(&record).unwrap();
        file.write_all(b"30 4").unwrap();
        drop(file);
        let mut again = PartialDownload::open(&path, 100).unwrap();
        assert_eq!(again.received.len(), 30);
        again.add(50..60).unwrap();
        again.record().unwrap();
        assert_eq!(PartialDownload::received_at(&path, 100), 40);
    }

    #[test]
    fn an_invalid_record_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc.mynah.incomplete");
        for wrong in [
            "",
            "mynah 2\nsize 9\n0 5\n",
            "mynah 1\nsize 8\n0 5\n",
            "mynah 1\nsize 9\n0 10\n",
            "mynah 1\nsize 9\n5 5\n",
            "mynah 1\nsize 9\nx\n",
            "\0\0\0\n",
        ] {
            fs::write(&path, [7; 9]).unwrap();
            fs::write(record_path(&path), wrong).unwrap();
            let partial = PartialDownload::open(&path, 9).unwrap();
            assert_eq!(partial.received.len(), 0, "{wrong:?}");
            drop(partial);
            assert_eq!(fs::read(&path).unwrap(), [0; 9], "{wrong:?}");
        }
        delete(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
