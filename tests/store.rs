//! What is cached is told truly, and what is deleted takes nothing else with it.

use mynah::{
    Error,
    hub::{self, CachedModel, Repository},
};
use mynah_tests::hub::content::Content;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tempfile::TempDir;

const OLD: &str = "1111111111111111111111111111111111111111";
const NEW: &str = "2222222222222222222222222222222222222222";

/// A cache as Python leaves it: two revisions of `org/model`, which share their weights, and another
/// model.
fn cache() -> TempDir {
    let cache = tempfile::tempdir().unwrap();
    let config = br#"{"model_type": "llama"}"#;
    let changed = br#"{"model_type": "llama", "a": 1}"#;
    let model = cache.path().join("models--org--model");
    for (commit, name, config, hash) in
        [(OLD, "v1", &config[..], "config-1"), (NEW, "main", &changed[..], "config-2")]
    {
        revision(&model, commit, name);
        file(&model, commit, "config.json", hash, config);
        let weights = Content::safetensors(&[("a", "U8", &[1000])], 1);
        file(&model, commit, "model.safetensors", "weights", &weights.to_vec());
    }
    let other = cache.path().join("models--single");
    revision(&other, NEW, "main");
    file(&other, NEW, "config.json", "config", config);
    fs::write(other.join("blobs/weights.incomplete"), [1; 300]).unwrap();
    for name in
        ["CACHEDIR.TAG", "datasets--org--data/blobs/x", "models--a--b--c/blobs/x", ".locks/x"]
    {
        let path = cache.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "not a model").unwrap();
    }
    cache
}

fn revision(model: &Path, commit: &str, name: &str) {
    for folder in ["blobs", "refs", "trees"] {
        fs::create_dir_all(model.join(folder)).unwrap();
    }
    fs::create_dir_all(model.join("snapshots").join(commit)).unwrap();
    fs::write(model.join("refs").join(name), commit).unwrap();
    fs::write(model.join(format!("trees/{commit}.json")), "").unwrap();
}

fn file(model: &Path, commit: &str, name: &str, hash: &str, bytes: &[u8]) {
    fs::write(model.join("blobs").join(hash), bytes).unwrap();
    let link = model.join("snapshots").join(commit).join(name);
    symlink(Path::new("../../blobs").join(hash), link).unwrap();
}

fn list(cache: &TempDir) -> BTreeMap<String, CachedModel> {
    let models = hub::list(cache.path()).unwrap().into_iter();
    models.map(|model| (model.repository.clone(), model)).collect()
}

fn named(repository: &str) -> Repository {
    repository.parse().unwrap()
}

/// Every path below a folder with what stands there.
fn tree(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut tree = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        let name = PathBuf::from(entry.file_name());
        if kind.is_dir() {
            let below = self::tree(&path).into_iter();
            tree.extend(below.map(|(path, content)| (name.join(path), content)));
            tree.insert(name, "folder".into());
        } else if kind.is_symlink() {
            tree.insert(name, format!("{:?}", fs::read_link(path).unwrap()));
        } else {
            tree.insert(name, format!("{:?}", fs::read(path).unwrap()));
        }
    }
    tree
}

#[test]
fn models_are_listed_with_what_they_take() {
    let cache = cache();
    let config = cache.path().join("models--org--model/blobs/config-1");
    let hour = SystemTime::now() + Duration::from_secs(3600);
    let times = fs::FileTimes::new().set_accessed(hour);
    fs::File::open(config).unwrap().set_times(times).unwrap();

    let models = list(&cache);
    assert_eq!(models.keys().collect::<Vec<_>>(), ["org/model", "single"]);
    let model = &models["org/model"];
    let (old, new) = (br#"{"model_type": "llama"}"#.len() as u64, 31);
    let weights = 8 + 64 + 1000;
    // Two refs of forty characters each are on disk, too.
    assert_eq!(model.bytes, weights + old + new + 2 * 40);
    let revisions: Vec<_> =
        model.revisions.iter().map(|r| (&*r.commit, r.bytes, r.complete)).collect();
    assert_eq!(revisions, [(OLD, weights + old, true), (NEW, weights + new, true)]);
    assert_eq!(model.revisions[0].names, ["v1"]);
    assert_eq!(model.revisions[0].last_used, Some(hour));
    assert!(model.revisions[1].last_used < Some(hour));

    let single = &models["single"];
    assert_eq!(single.bytes, old + 300 + 40);
    assert_eq!((single.revisions.len(), single.revisions[0].complete), (1, false));
    assert_eq!(hub::list(&cache.path().join("nowhere")).unwrap(), []);
}

#[test]
fn a_revision_goes_without_what_others_share() {
    let cache = cache();
    let model = cache.path().join("models--org--model");
    let mut expected = tree(cache.path());
    let freed = hub::delete_revision(cache.path(), &named("org/model"), "v1").unwrap();
    assert_eq!(freed, br#"{"model_type": "llama"}"#.len() as u64);
    let gone = [
        "refs/v1".to_string(),
        "blobs/config-1".into(),
        format!("trees/{OLD}.json"),
        format!("snapshots/{OLD}"),
        format!("snapshots/{OLD}/config.json"),
        format!("snapshots/{OLD}/model.safetensors"),
    ];
    for path in gone {
        assert!(expected.remove(&Path::new("models--org--model").join(&path)).is_some(), "{path}");
    }
    assert!(tree(cache.path()) == expected);

    let model_bytes = list(&cache)["org/model"].bytes;
    assert_eq!(hub::delete_revision(cache.path(), &named("org/model"), NEW).unwrap(), model_bytes);
    assert!(!model.exists());
}

#[test]
fn a_model_goes_as_a_whole_and_alone() {
    let cache = cache();
    let mut expected = tree(cache.path());
    expected.retain(|path, _| !path.starts_with("models--org--model"));
    let bytes = list(&cache)["org/model"].bytes;
    assert_eq!(hub::delete(cache.path(), &named("org/model")).unwrap(), bytes);
    assert!(tree(cache.path()) == expected);
    for error in [
        hub::delete(cache.path(), &named("org/model")).unwrap_err(),
        hub::delete(cache.path(), &named("a/b")).unwrap_err(),
        hub::delete_revision(cache.path(), &named("single"), "v7").unwrap_err(),
    ] {
        assert!(matches!(error, Error::NotCached { .. }), "{error:?}");
    }
    assert!(tree(cache.path()) == expected);
}

#[test]
fn links_out_of_the_cache_are_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    let precious = outside.path().join("blobs/precious");
    fs::create_dir(outside.path().join("blobs")).unwrap();
    fs::write(&precious, [0; 5000]).unwrap();
    let before = tree(outside.path());

    let cache = cache();
    let model = cache.path().join("models--org--model");
    let snapshot = model.join("snapshots").join(OLD);
    symlink(&precious, snapshot.join("a")).unwrap();
    symlink(outside.path(), snapshot.join("b")).unwrap();
    symlink("../../../../../../../../etc/passwd", snapshot.join("c")).unwrap();
    symlink(&precious, model.join("blobs/d")).unwrap();
    symlink("../../blobs/d", snapshot.join("d")).unwrap();
    symlink(outside.path(), model.join("snapshots/3333")).unwrap();
    symlink(outside.path(), cache.path().join("models--linked")).unwrap();
    symlink(&precious, model.join("refs/linked")).unwrap();

    let models = list(&cache);
    assert!(models["org/model"].bytes < 5000);
    assert!(models["org/model"].revisions.iter().all(|revision| revision.bytes < 5000));
    assert!(matches!(hub::delete(cache.path(), &named("linked")), Err(Error::NotCached { .. })));
    hub::delete_revision(cache.path(), &named("org/model"), OLD).unwrap();
    hub::delete(cache.path(), &named("org/model")).unwrap();
    assert!(tree(outside.path()) == before);
}

#[test]
fn the_folder_moves_with_all_that_is_in_it() {
    let cache = cache();
    let expected = tree(cache.path());
    let models = hub::list(cache.path()).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let inside = hub::move_to(cache.path(), &cache.path().join("a/b"));
    assert!(matches!(inside, Err(Error::Io { .. })), "{inside:?}");
    fs::create_dir(elsewhere.path().join("full")).unwrap();
    fs::write(elsewhere.path().join("full/x"), "").unwrap();
    let full = hub::move_to(cache.path(), &elsewhere.path().join("full"));
    assert!(matches!(full, Err(Error::Io { .. })), "{full:?}");

    let to = elsewhere.path().join("new/hub");
    hub::move_to(cache.path(), &to).unwrap();
    assert!(!cache.path().exists());
    assert!(tree(&to) == expected);
    assert_eq!(hub::list(&to).unwrap(), models);
}

#[cfg(target_os = "linux")]
#[test]
fn the_folder_moves_to_another_disk() {
    use std::os::unix::fs::MetadataExt;
    let cache = cache();
    let expected = tree(cache.path());
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    assert_ne!(device(cache.path()), device(memory.path()), "not another disk");
    let to = memory.path().join("hub");
    hub::move_to(cache.path(), &to).unwrap();
    assert!(!cache.path().exists());
    assert!(tree(&to) == expected);
}
