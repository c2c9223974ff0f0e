//! A disk that fails, dies, or loses power at a chosen operation.
//!
//! Every operation is done to real files, so that they can be read, and to a model of what of them would survive: the
//! bytes of a file up to its last sync, the names of a folder up to its last sync.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use olmoe_checkpoint::disk::{Disk, LocalDisk};

/// What happens at the chosen operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    None,
    /// It fails; those after it do not.
    Error(usize),
    /// It and all after it fail.
    Errors(usize),
    /// The process ends: it is half done, nothing after it happens.
    Death(usize),
}

/// What is on disk after the end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Luck {
    /// The system lives on, and writes all of it.
    SystemLives,
    /// The power is lost: nothing survives that was not synced.
    Worst,
    /// The power is lost: of what was not synced, some names survive, in no order; and of each file the old, the new, or
    /// of what was written since its last sync the first half, or zeros.
    Random(u64),
}

#[derive(Debug)]
enum Node {
    Folder { live: BTreeMap<String, usize>, durable: BTreeMap<String, usize>, pending: Vec<Change> },
    File { live: Vec<u8>, durable: Vec<u8> },
    Link(String),
}

#[derive(Debug)]
struct Change {
    removed: Option<String>,
    set: Option<(String, usize)>,
}

#[derive(Debug)]
struct State {
    nodes: Vec<Node>,
    operations: usize,
    fault: Fault,
    fired: bool,
    dead: bool,
}

#[derive(Debug)]
pub(crate) struct FaultyDisk {
    root: PathBuf,
    state: RefCell<State>,
}

/// A folder in memory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tree {
    Folder(BTreeMap<String, Tree>),
    File(Vec<u8>),
    Link(String),
}

impl Tree {
    pub(crate) fn read(path: &Path) -> Tree {
        let metadata = std::fs::symlink_metadata(path).unwrap();
        if metadata.is_symlink() {
            Tree::Link(std::fs::read_link(path).unwrap().to_str().unwrap().into())
        } else if metadata.is_dir() {
            let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
            Tree::Folder(entries.map(|e| (e.file_name().into_string().unwrap(), Tree::read(&e.path()))).collect())
        } else {
            Tree::File(std::fs::read(path).unwrap())
        }
    }

    /// Makes `path` so, which is a folder or nothing.
    pub(crate) fn write(&self, path: &Path) {
        let _ = std::fs::remove_dir_all(path);
        match self {
            Tree::Folder(entries) => {
                std::fs::create_dir(path).unwrap();
                entries.iter().for_each(|(name, entry)| entry.write(&path.join(name)));
            }
            Tree::File(bytes) => std::fs::write(path, bytes).unwrap(),
            Tree::Link(target) => LocalDisk.point(path, target).unwrap(),
        }
    }
}

impl FaultyDisk {
    /// Of all that is in `root`, taken as synced.
    pub(crate) fn new(root: &Path, fault: Fault) -> Self {
        fn add(nodes: &mut Vec<Node>, tree: Tree) -> usize {
            let node = match tree {
                Tree::Folder(entries) => {
                    let live: BTreeMap<_, _> = entries.into_iter().map(|(name, e)| (name, add(nodes, e))).collect();
                    Node::Folder { durable: live.clone(), live, pending: Vec::new() }
                }
                Tree::File(bytes) => Node::File { live: bytes.clone(), durable: bytes },
                Tree::Link(target) => Node::Link(target),
            };
            nodes.push(node);
            nodes.len() - 1
        }
        let mut nodes = Vec::new();
        // The root comes last.
        add(&mut nodes, Tree::read(root));
        let last = nodes.len() - 1;
        nodes.swap(0, last);
        for node in &mut nodes {
            let Node::Folder { live, durable, .. } = node else { continue };
            for id in live.values_mut().chain(durable.values_mut()) {
                *id = if *id == 0 { last } else { *id };
            }
        }
        let state = State { nodes, operations: 0, fault, fired: false, dead: false };
        Self { root: root.into(), state: RefCell::new(state) }
    }

    /// Whether the fault happened.
    pub(crate) fn fired(&self) -> bool {
        self.state.borrow().fired
    }

    /// Makes the real files what the end leaves of them.
    pub(crate) fn settle(&self, luck: Luck) {
        let mut random = match luck {
            Luck::Random(seed) => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            _ => 0,
        };
        self.tree(0, luck, &mut random).write(&self.root);
    }

    fn tree(&self, id: usize, luck: Luck, random: &mut u64) -> Tree {
        let mut pick = |choices: u64| {
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            (*random >> 20) % choices
        };
        match &self.state.borrow().nodes[id] {
            Node::Link(target) => Tree::Link(target.clone()),
            Node::File { live, durable } => Tree::File(match (luck, durable == live) {
                (Luck::SystemLives, _) | (_, true) => live.clone(),
                (Luck::Worst, _) => durable.clone(),
                (Luck::Random(_), _) => match pick(4) {
                    0 => durable.clone(),
                    1 => live.clone(),
                    // What was appended to a synced file leaves that as it is.
                    cut => {
                        let kept = if live.starts_with(durable) { durable.len() } else { 0 };
                        let mut left = live.clone();
                        match cut {
                            2 => left.truncate(kept + (live.len() - kept) / 2),
                            _ => left[kept..].fill(0),
                        }
                        left
                    }
                },
            }),
            Node::Folder { live, durable, pending } => {
                let mut entries = if matches!(luck, Luck::SystemLives) { live.clone() } else { durable.clone() };
                if matches!(luck, Luck::Random(_)) {
                    for change in pending.iter().filter(|_| pick(2) == 0) {
                        change.removed.as_ref().and_then(|name| entries.remove(name));
                        entries.extend(change.set.clone());
                    }
                }
                Tree::Folder(entries.into_iter().map(|(name, id)| (name, self.tree(id, luck, random))).collect())
            }
        }
    }

    /// Counts an operation; says whether it happens.
    fn begin(&self) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.operations += 1;
        let (at, fault) = (state.operations, state.fault);
        let fails = match fault {
            Fault::None => false,
            Fault::Error(n) | Fault::Death(n) => at == n,
            Fault::Errors(n) => at >= n,
        };
        state.fired |= fails;
        state.dead |= fails && matches!(fault, Fault::Death(_));
        if fails || state.dead { Err(io::Error::other("injected fault")) } else { Ok(()) }
    }

    fn find(&self, path: &Path) -> usize {
        let mut id = 0;
        for name in path.strip_prefix(&self.root).unwrap() {
            let Node::Folder { live, .. } = &self.state.borrow().nodes[id] else { panic!("{path:?}") };
            id = live[name.to_str().unwrap()];
        }
        id
    }

    /// A change of the names in the folder of `path`.
    fn change(&self, path: &Path, removed: Option<&Path>, set: Option<(&Path, usize)>) {
        let parent = self.find(path.parent().unwrap());
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let change = Change { removed: removed.map(name), set: set.map(|(path, id)| (name(path), id)) };
        let Node::Folder { live, pending, .. } = &mut self.state.borrow_mut().nodes[parent] else { panic!() };
        change.removed.as_ref().and_then(|name| live.remove(name));
        live.extend(change.set.clone());
        pending.push(change);
    }

    fn add(&self, path: &Path, node: Node) -> usize {
        let id = self.state.borrow().nodes.len();
        self.state.borrow_mut().nodes.push(node);
        self.change(path, None, Some((path, id)));
        id
    }

    fn append(&self, (id, file): &mut (usize, File), bytes: &[u8]) {
        file.write_all(bytes).unwrap();
        let Node::File { live, .. } = &mut self.state.borrow_mut().nodes[*id] else { panic!() };
        live.extend_from_slice(bytes);
    }
}

impl Disk for &FaultyDisk {
    type File = (usize, File);

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.begin()?;
        LocalDisk.create_dir(path)?;
        self.add(path, Node::Folder { live: BTreeMap::new(), durable: BTreeMap::new(), pending: Vec::new() });
        Ok(())
    }

    fn create_file(&self, path: &Path) -> io::Result<(usize, File)> {
        self.begin()?;
        let file = LocalDisk.create_file(path)?;
        Ok((self.add(path, Node::File { live: Vec::new(), durable: Vec::new() }), file))
    }

    fn open_append(&self, path: &Path) -> io::Result<(usize, File)> {
        if !path.exists() {
            return self.create_file(path);
        }
        self.begin()?;
        Ok((self.find(path), LocalDisk.open_append(path)?))
    }

    fn truncate(&self, file: &mut (usize, File), length: u64) -> io::Result<()> {
        self.begin()?;
        LocalDisk.truncate(&mut file.1, length)?;
        let Node::File { live, .. } = &mut self.state.borrow_mut().nodes[file.0] else { panic!() };
        live.truncate(length as usize);
        Ok(())
    }

    fn write(&self, file: &mut (usize, File), bytes: &[u8]) -> io::Result<()> {
        let was_dead = self.state.borrow().dead;
        let result = self.begin();
        if !was_dead {
            self.append(file, if result.is_ok() { bytes } else { &bytes[..bytes.len() / 2] });
        }
        result
    }

    fn sync_file(&self, file: &(usize, File)) -> io::Result<()> {
        self.begin()?;
        let Node::File { live, durable } = &mut self.state.borrow_mut().nodes[file.0] else { panic!() };
        durable.clone_from(live);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.begin()?;
        let id = self.find(path);
        let Node::Folder { live, durable, pending } = &mut self.state.borrow_mut().nodes[id] else { panic!() };
        durable.clone_from(live);
        pending.clear();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.begin()?;
        LocalDisk.rename(from, to)?;
        assert_eq!(from.parent(), to.parent());
        self.change(from, Some(from), Some((to, self.find(from))));
        Ok(())
    }

    fn point(&self, path: &Path, target: &str) -> io::Result<()> {
        self.begin()?;
        LocalDisk.point(path, target)?;
        self.add(path, Node::Link(target.into()));
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.begin()?;
        LocalDisk.remove_file(path)?;
        self.change(path, Some(path), None);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.begin()?;
        LocalDisk.remove_dir(path)?;
        self.change(path, Some(path), None);
        Ok(())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        self.begin()?;
        Ok(1 << 40)
    }
}
