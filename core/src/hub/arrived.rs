//! Which bytes of a file have arrived, in memory and on disk, so that no byte is fetched twice.

use crate::error::{Error, Result};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    ops::Range,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A set of bytes by their positions: disjoint ranges that do not touch, end by start.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Extents(BTreeMap<u64, u64>);

impl Extents {
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

    /// How many bytes there are.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// Up to where no byte is missing.
    pub fn prefix(&self) -> u64 {
        self.0.get(&0).copied().unwrap_or(0)
    }

    /// What is missing of a file of this size.
    pub fn gaps(&self, size: u64) -> Vec<Range<u64>> {
        let starts = self.0.keys().copied().chain([size]);
        let ends = [0].into_iter().chain(self.0.values().copied());
        ends.zip(starts).map(|(end, start)| end..start).filter(|gap| gap.start < gap.end).collect()
    }
}

/// A file that is being fetched, and the record beside it of what has arrived. The bytes are
/// written before the record, so the record is never ahead of them when the process is killed.
pub(super) struct Partial {
    pub file: File,
    /// What has arrived.
    pub arrived: Extents,
    /// What names the version of the file on the server.
    pub version: Option<String>,
    record: File,
    record_path: PathBuf,
    /// What the record does not say yet.
    pending: Extents,
    recorded: Instant,
}

const FIRST_LINE: &str = "mynah 1";

impl Partial {
    /// Goes on with the file at `path`, or begins it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path, size: u64) -> Result<Self> {
        let record_path = record_path(path);
        let known = read_record(path, size);
        let (arrived, version) = known.clone().unwrap_or_default();
        if known.is_none() {
            discard(path)?;
        }
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(Error::io(path))?;
        file.set_len(size).map_err(Error::io(path))?;

        // A record whose last line was cut must not be appended to.
        let mut text = format!("{FIRST_LINE}\nsize {size}\n");
        if let Some(version) = &version {
            text += &format!("version {version}\n");
        }
        for (start, end) in &arrived.0 {
            text += &format!("{start} {end}\n");
        }
        let new = record_path.with_extension("new");
        fs::write(&new, text).map_err(Error::io(&new))?;
        fs::rename(&new, &record_path).map_err(Error::io(&record_path))?;
        let record = OpenOptions::new().append(true).open(&record_path);
        Ok(Partial {
            file,
            arrived,
            version,
            record: record.map_err(Error::io(&record_path))?,
            record_path,
            pending: Extents::default(),
            recorded: Instant::now(),
        })
    }

    /// How many bytes of the file at `path` have arrived in earlier attempts.
    pub fn len_at(path: &Path, size: u64) -> u64 {
        read_record(path, size).map_or(0, |(arrived, _)| arrived.len())
    }

    /// These bytes are in the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn add(&mut self, range: Range<u64>) -> Result<()> {
        self.arrived.insert(range.clone());
        self.pending.insert(range);
        const INTERVAL: Duration = Duration::from_millis(100);
        const BYTES: u64 = 2 << 20;
        if self.pending.len() >= BYTES || self.recorded.elapsed() >= INTERVAL {
            self.record()?;
        }
        Ok(())
    }

    /// The file is this version.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_version(&mut self, version: String) -> Result<()> {
        self.append(&format!("version {version}\n"))?;
        self.version = Some(version);
        Ok(())
    }

    /// Writes down what has arrived.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn record(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.recorded = Instant::now();
        let lines: String =
            pending.0.iter().map(|(start, end)| format!("{start} {end}\n")).collect();
        self.append(&lines)
    }

    fn append(&mut self, lines: &str) -> Result<()> {
        self.record.write_all(lines.as_bytes()).map_err(Error::io(&self.record_path))
    }
}

/// Removes the file at `path` and its record.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn discard(path: &Path) -> Result<()> {
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
    path.with_extension("arrived")
}

/// What the record says, if it is one, of a file that is there.
fn read_record(path: &Path, size: u64) -> Option<(Extents, Option<String>)> {
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
    let (mut arrived, mut version) = (Extents::default(), None);
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
        arrived.insert(start..end);
    }
    Some((arrived, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_a_set_of_bytes() {
        // Against a bit for each byte, over all kinds of overlaps.
        let (mut extents, mut bits) = (Extents::default(), [false; 60]);
        let mut random = 12345u64;
        for _ in 0..400 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let (start, length) = ((random >> 33) % 60, (random >> 50) % 7);
            let end = (start + length).min(60);
            extents.insert(start..end);
            bits[start as usize..end as usize].fill(true);
            assert_eq!(extents.len(), bits.iter().filter(|bit| **bit).count() as u64);
            let prefix = bits.iter().take_while(|bit| **bit).count() as u64;
            assert_eq!(extents.prefix(), prefix);
            let missing: Vec<u64> = extents.gaps(60).into_iter().flatten().collect();
            let expected: Vec<u64> = (0..60).filter(|i| !bits[*i as usize]).collect();
            assert_eq!(missing, expected);
            if bits.iter().filter(|bit| **bit).count() > 50 {
                (extents, bits) = (Extents::default(), [false; 60]);
            }
        }
    }

    #[test]
    fn what_arrived_is_known_the_next_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc.mynah.incomplete");
        let mut partial = Partial::open(&path, 100).unwrap();
        partial.set_version("\"v1\"".into()).unwrap();
        partial.add(10..20).unwrap();
        partial.add(20..30).unwrap();
        partial.add(90..100).unwrap();
        partial.record().unwrap();
        drop(partial);
        assert_eq!(Partial::len_at(&path, 100), 30);
        let again = Partial::open(&path, 100).unwrap();
        assert_eq!(again.arrived.gaps(100), [0..10, 30..90]);
        assert_eq!(again.version.as_deref(), Some("\"v1\""));
        drop(again);

        // A line that a crash cut does not count, and does not spoil the lines after it.
        let record = record_path(&path);
        let mut file = OpenOptions::new().append(true).open(&record).unwrap();
        file.write_all(b"30 4").unwrap();
        drop(file);
        let mut again = Partial::open(&path, 100).unwrap();
        assert_eq!(again.arrived.len(), 30);
        again.add(50..60).unwrap();
        again.record().unwrap();
        assert_eq!(Partial::len_at(&path, 100), 40);
    }

    #[test]
    fn a_record_that_makes_no_sense_counts_for_nothing() {
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
            let partial = Partial::open(&path, 9).unwrap();
            assert_eq!(partial.arrived.len(), 0, "{wrong:?}");
            drop(partial);
            assert_eq!(fs::read(&path).unwrap(), [0; 9], "{wrong:?}");
        }
        discard(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
