package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/image/erofs"
)

const (
	whiteout      = ".wh."
	whiteoutMeta  = ".wh..wh." // of aufs, which made whiteouts up
	opaque        = ".wh..wh..opq"
	maxPath       = 4096 // as in Linux
	maxFollow     = 40   // symlinks in one path, as in Linux
	maxNames      = 256 << 20
	noteExamples  = 3
	attrOfPAX     = "SCHILY.xattr."
	maxOwner      = 1<<32 - 2 // 2^32-1 means "no change" to chown
	rebuildRemedy = "change the build step that makes this layer, and build the image again"
)

// merger puts layers on top of each other, lowest first. Contents go to the writer as they are read;
// names are kept in memory.
type merger struct {
	w     *erofs.Writer
	cfg   Config
	root  *node
	layer int           // the layer at work, from 1
	name  volant.Digest // its digest, for errors

	entries, names int
	bytes          int64
	notes          map[string][]string
}

// node is a name in the tree. Hard links share an inode.
type node struct {
	inode    *erofs.Inode
	children map[string]*node // of a directory, else nil
	layer    int              // the highest that has this name, or for a directory a name below it
	hidden   int              // the last layer whose whiteout or opaque mark hid what was below
}

func newMerger(w *erofs.Writer, cfg Config) *merger {
	return &merger{w: w, cfg: cfg, root: newDir(0), notes: make(map[string][]string)}
}

func newDir(layer int) *node {
	return &node{inode: &erofs.Inode{Mode: erofs.TypeDir | 0o755}, children: make(map[string]*node), layer: layer}
}

func (n *node) kind() uint16 { return n.inode.Mode & erofs.TypeMask }

// apply puts a layer on top of those before.
func (m *merger) apply(ctx context.Context, name volant.Digest, r io.Reader) error {
	m.layer++
	m.name = name
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if m.entries++; m.entries > m.cfg.MaxEntries {
			return m.refuse("the image has more than %d entries", m.cfg.MaxEntries).WithRemedy("make it smaller")
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := m.entry(ctx, h, tr); err != nil {
			return err
		}
	}
}

func (m *merger) refuse(format string, args ...any) *volant.Error {
	return volant.Invalidf("layer %s: %s", string(m.name), fmt.Sprintf(format, args...)).WithRemedy(rebuildRemedy)
}

// entry applies one entry of a layer.
func (m *merger) entry(ctx context.Context, h *tar.Header, r io.Reader) error {
	dir, base, err := m.split(h.Name)
	if err != nil {
		return err
	}
	if base == "" {
		if h.Typeflag != tar.TypeDir {
			return m.refuse("the root %q is no directory", h.Name)
		}
		return m.describe(m.root.inode, h)
	}
	if strings.HasPrefix(base, whiteout) {
		return m.whiteout(h.Name, dir, base)
	}
	parent, err := m.walk(h.Name, dir, true)
	if err != nil {
		return err
	}
	n, err := m.make(ctx, h, r, parent.children[base])
	if err != nil {
		return err
	}
	n.layer = m.layer
	parent.children[base] = n
	return nil
}

// split makes a name relative to the root and cuts its last part off.
func (m *merger) split(name string) (dir, base string, err error) {
	if m.names += len(name); m.names > maxNames {
		return "", "", m.refuse("the names in the image take more than %s", size(maxNames)).WithRemedy("make it smaller")
	}
	if len(name) > maxPath || strings.ContainsRune(name, 0) {
		return "", "", m.refuse("the name %.64q… has %d bytes or a zero in it, at most %d work", name, len(name), maxPath)
	}
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", "", m.refuse("the path %q climbs out of the image's root", name)
	}
	if clean == "." {
		return "", "", nil
	}
	dir, base = path.Split(clean)
	if len(base) > erofs.MaxName {
		return "", "", m.refuse("the name %.64q… has %d bytes, at most %d work", base, len(base), erofs.MaxName)
	}
	return dir, base, nil
}

// walk goes to a directory, following symlinks inside the image. With touch it makes what is missing
// and marks the way as part of this layer; without, it returns nil if something is missing.
func (m *merger) walk(entry, dir string, touch bool) (*node, error) {
	way := []*node{m.root}
	todo := strings.Split(dir, "/")
	for follows := 0; len(todo) > 0; {
		here, name := way[len(way)-1], todo[0]
		todo = todo[1:]
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			if len(way) == 1 {
				return nil, m.refuse("the path %q climbs out of the image's root by a symlink", entry)
			}
			way = way[:len(way)-1]
			continue
		}
		next := here.children[name]
		switch {
		case next == nil && !touch:
			return nil, nil
		case next == nil:
			if len(name) > erofs.MaxName {
				return nil, m.refuse("the name %.64q… has %d bytes, at most %d work", name, len(name), erofs.MaxName)
			}
			next = newDir(m.layer)
			here.children[name] = next
		case next.kind() == erofs.TypeSymlink:
			if follows++; follows > maxFollow {
				return nil, m.refuse("the path %q leads over too many symlinks", entry)
			}
			if strings.HasPrefix(next.inode.Target, "/") {
				way = way[:1]
			}
			todo = append(strings.Split(next.inode.Target, "/"), todo...)
			continue
		case next.children == nil:
			return nil, m.refuse("the path %q leads over %q, which is no directory", entry, name)
		}
		if touch {
			next.layer = m.layer
		}
		way = append(way, next)
	}
	return way[len(way)-1], nil
}

// whiteout removes what lower layers have under a name, or all that they have in a directory.
func (m *merger) whiteout(entry, dir, base string) error {
	parent, err := m.walk(entry, dir, false)
	if err != nil || parent == nil {
		return err
	}
	if base == opaque {
		m.hide(parent)
		return nil
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil
	}
	name := strings.TrimPrefix(base, whiteout)
	if name == "" || name == "." || name == ".." {
		return m.refuse("the whiteout %q names nothing", entry)
	}
	switch n := parent.children[name]; {
	case n == nil:
	case n.layer < m.layer:
		delete(parent.children, name)
	default:
		m.hide(n)
	}
	return nil
}

// hide removes what is below n and not of this layer. A name of this layer may have others below it.
func (m *merger) hide(n *node) {
	if n.hidden == m.layer {
		return
	}
	n.hidden = m.layer
	for name, c := range n.children {
		if c.layer < m.layer {
			delete(n.children, name)
		} else {
			m.hide(c)
		}
	}
}

// make makes the node of an entry; old is what has its name already, or nil.
func (m *merger) make(ctx context.Context, h *tar.Header, r io.Reader, old *node) (*node, error) {
	if h.Typeflag == tar.TypeLink {
		return m.link(h)
	}
	if h.Typeflag == tar.TypeDir && old != nil && old.children != nil {
		return old, m.describe(old.inode, h)
	}
	n := &node{inode: &erofs.Inode{}}
	switch h.Typeflag {
	case tar.TypeDir:
		n = newDir(m.layer)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		n.inode.Mode = erofs.TypeRegular
		if m.bytes += h.Size; m.bytes > m.cfg.MaxBytes || m.bytes < 0 {
			return nil, m.refuse("its files take the image over the limit of %s", size(m.cfg.MaxBytes)).WithRemedy("make the image smaller")
		}
		content, err := m.w.Data(ctx, r, h.Size)
		if err != nil {
			return nil, err
		}
		n.inode.Content = content
	case tar.TypeSymlink:
		n.inode.Mode = erofs.TypeSymlink
		n.inode.Target = h.Linkname
		if m.names += len(h.Linkname); len(h.Linkname) == 0 || len(h.Linkname) > erofs.MaxTarget {
			return nil, m.refuse("the symlink %q leads to a path of %d bytes, 1 to %d work", h.Name, len(h.Linkname), erofs.MaxTarget)
		}
	case tar.TypeFifo:
		n.inode.Mode = erofs.TypeFIFO
	case tar.TypeChar:
		n.inode.Mode = erofs.TypeChar
	case tar.TypeBlock:
		n.inode.Mode = erofs.TypeBlock
	default:
		return nil, m.refuse("the entry %q is of the unknown kind %q", h.Name, h.Typeflag)
	}
	return n, m.describe(n.inode, h)
}

// link makes a further name for what an entry before, of this layer or a lower one, has made.
func (m *merger) link(h *tar.Header) (*node, error) {
	dir, base, err := m.split(h.Linkname)
	if err != nil {
		return nil, err
	}
	parent, err := m.walk(h.Linkname, dir, false)
	if err != nil {
		return nil, err
	}
	var target *node
	if parent != nil {
		target = parent.children[base]
	}
	switch {
	case target == nil:
		return nil, m.refuse("the hard link %q leads to %q, which is not there", h.Name, h.Linkname)
	case target.children != nil:
		return nil, m.refuse("the hard link %q leads to the directory %q", h.Name, h.Linkname)
	}
	return &node{inode: target.inode}, nil
}

// describe takes owner, permissions, time and attributes from an entry.
func (m *merger) describe(in *erofs.Inode, h *tar.Header) error {
	if h.Uid < 0 || h.Gid < 0 || h.Uid > maxOwner || h.Gid > maxOwner {
		return m.refuse("the entry %q is owned by %d:%d, which Linux cannot keep", h.Name, h.Uid, h.Gid)
	}
	in.UID, in.GID = uint32(h.Uid), uint32(h.Gid)
	in.Mode = in.Mode&erofs.TypeMask | uint16(h.Mode)&0o7777
	if in.Mode&erofs.TypeMask == erofs.TypeSymlink {
		in.Mode |= 0o777
	}
	in.Sec, in.Nsec = h.ModTime.Unix(), uint32(h.ModTime.Nanosecond())
	in.Attrs = nil
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, attrOfPAX)
		if !ok {
			continue
		}
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			m.note("attributes of overlayfs", h.Name)
			continue
		}
		a := erofs.Attr{Name: name, Value: []byte(value)}
		if err := a.Check(); err != nil {
			m.note("attributes that the root disk cannot hold", h.Name)
			continue
		}
		m.names += len(name) + len(value)
		in.Attrs = append(in.Attrs, a)
	}
	if n := erofs.AttrsSize(in.Attrs); n > erofs.MaxAttrs {
		return m.refuse("the entry %q has attributes of %d bytes, at most %d work", h.Name, n, erofs.MaxAttrs)
	}
	return nil
}

func (m *merger) note(what, name string) { m.notes[what] = append(m.notes[what], name) }

// finish writes the file system and returns its size and what was left out, for people.
func (m *merger) finish(label [16]byte) (int64, []string, error) {
	m.build(m.root, "")
	n, err := m.w.Finish(m.root.inode, label)
	var notes []string
	for what, names := range m.notes {
		slices.Sort(names)
		names = slices.Compact(names)
		text := fmt.Sprintf("left out %s: %s", what, strings.Join(names[:min(len(names), noteExamples)], ", "))
		if len(names) > noteExamples {
			text += fmt.Sprintf(" and %d more", len(names)-noteExamples)
		}
		notes = append(notes, text)
	}
	slices.Sort(notes)
	return n, notes, err
}

// build turns the nodes below n into directory entries.
func (m *merger) build(n *node, at string) {
	n.inode.Entries = make([]erofs.Entry, 0, len(n.children))
	for name, c := range n.children {
		if k := c.kind(); k == erofs.TypeChar || k == erofs.TypeBlock {
			m.note("device nodes", at+name)
			continue
		}
		n.inode.Entries = append(n.inode.Entries, erofs.Entry{Name: name, Inode: c.inode})
		if c.children != nil {
			m.build(c, at+name+"/")
		}
	}
}
