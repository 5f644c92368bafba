package why

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// file is the ring of one kind on disk: two segments, of which the older is overwritten when the newer
// is full. A segment begins with a line that orders the two; each other line is a checksum, a space
// and a record in JSON. A reader skips every line which does not check.
type file struct {
	paths [2]string
	most  int64 // bytes per segment
	now   int   // index of the newer
	seq   uint64
	f     *os.File
	size  int64
	// index says where the records of each segment lie, oldest first, so that a query reads only those it
	// may select.
	index [2][]place
}

// place is where a record lies in its segment, and whom it is of.
type place struct {
	off          int64
	size         int32
	machine, app uint32 // hashes
}

// hash is for the index: what it confuses a query tells apart.
func hash[T ~string](s T) uint32 { return crc32.Checksum([]byte(s), castagnoli) }

func placeOf(r Record, off int64, size int) place {
	return place{off: off, size: int32(size), machine: hash(r.Machine), app: hash(r.App)}
}

const (
	header = "volant-why 1 "
	// maxLine bounds a record on disk. A reason is a sentence; 16 KiB leaves room for its attributes.
	maxLine = 16 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func openFile(dir, kind string, most int64) (*file, error) {
	f := &file{most: max(most, maxLine)}
	for i := range f.paths {
		f.paths[i] = filepath.Join(dir, fmt.Sprintf("%s.%d.log", kind, i))
		seq, err := segmentSeq(f.paths[i])
		if err != nil {
			return nil, err
		}
		if seq > f.seq {
			f.seq, f.now = seq, i
		}
	}
	if f.seq == 0 {
		return f, f.begin(0)
	}
	for i := range f.paths {
		b, err := os.ReadFile(f.paths[i])
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		for at, r := range decode(b) {
			f.index[i] = append(f.index[i], placeOf(r, at.off, at.size))
		}
	}
	return f, f.resume()
}

// segmentSeq reads the order of a segment; 0 where there is none that can be read.
func segmentSeq(path string) (uint64, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // only read
	b := make([]byte, len(header)+21)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, err
	}
	line, _, ok := bytes.Cut(b[:n], []byte("\n"))
	digits, marked := bytes.CutPrefix(line, []byte(header))
	if !ok || !marked {
		return 0, nil
	}
	seq, err := strconv.ParseUint(string(digits), 10, 63)
	if err != nil {
		return 0, nil // a segment nobody can read is overwritten
	}
	return seq, nil
}

// resume appends to the newer segment. A torn last line gets its end first.
func (f *file) resume() error {
	h, err := os.OpenFile(f.paths[f.now], os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	end, err := h.Seek(0, io.SeekEnd)
	if err != nil {
		return errors.Join(err, h.Close())
	}
	last := make([]byte, 1)
	if _, err := h.ReadAt(last, end-1); err != nil {
		return errors.Join(err, h.Close())
	}
	f.f, f.size = h, end
	if last[0] != '\n' {
		return f.append([]byte("\n"))
	}
	return nil
}

// begin empties segment i and writes to it from now on.
func (f *file) begin(i int) error {
	if err := f.close(); err != nil {
		return err
	}
	h, err := os.OpenFile(f.paths[i], os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	f.f, f.now, f.size, f.index[i] = h, i, 0, nil
	f.seq++
	return f.append([]byte(header + strconv.FormatUint(f.seq, 10) + "\n"))
}

func (f *file) append(b []byte) error {
	n, err := f.f.Write(b)
	f.size += int64(n)
	return err
}

func (f *file) close() error {
	if f.f == nil {
		return nil
	}
	err := f.f.Close()
	f.f = nil
	return err
}

func (f *file) write(recs []Record) error {
	var out []byte
	for _, r := range recs {
		line := encode(r)
		if f.size+int64(len(out)+len(line)) > f.most && f.size > 0 {
			if err := f.append(out); err != nil {
				return err
			}
			out = nil
			if err := f.begin(1 - f.now); err != nil {
				return err
			}
		}
		if len(line) > 0 {
			f.index[f.now] = append(f.index[f.now], placeOf(r, f.size+int64(len(out)), len(line)))
		}
		out = append(out, line...)
	}
	return f.append(out)
}

// read returns the newest records that q selects, newest first.
func (f *file) read(q Query) ([]Record, error) {
	var out []Record
	for _, i := range []int{f.now, 1 - f.now} {
		found, err := f.segment(i, q, q.limit()-len(out))
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// segment returns at most n records of a segment that q selects, newest first.
func (f *file) segment(i int, q Query, n int) (out []Record, err error) {
	machine, app := hash(q.Machine), hash(q.App)
	var h *os.File
	defer func() {
		if h != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	for _, p := range slices.Backward(f.index[i]) {
		if len(out) >= n {
			break
		}
		if q.Machine != "" && p.machine != machine || q.App != "" && p.app != app {
			continue
		}
		if h == nil {
			if h, err = os.Open(f.paths[i]); errors.Is(err, os.ErrNotExist) {
				return out, nil
			} else if err != nil {
				return nil, err
			}
		}
		line := make([]byte, p.size)
		if _, err := h.ReadAt(line, p.off); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if r, ok := decodeLine(line); ok && q.Match(r) {
			out = append(out, r)
		}
	}
	return out, nil
}

// encode writes r as a line. One that is too long loses its attributes and the end of its text.
func encode(r Record) []byte {
	b, err := json.Marshal(r)
	if err != nil || len(b) > maxLine-10 {
		r.Attrs = nil
		r.Text = r.Text[:min(len(r.Text), 1024)]
		r.Rule = r.Rule[:min(len(r.Rule), 128)]
		r.Request = r.Request[:min(len(r.Request), 128)]
		if b, err = json.Marshal(r); err != nil || len(b) > maxLine-10 {
			return nil // an ID or a time no record of ours has
		}
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(b, castagnoli), b)
}

// line is where a record's line lies.
type line struct {
	off  int64
	size int
}

// decode yields the records of a segment, oldest first, and skips what does not check.
func decode(b []byte) iter.Seq2[line, Record] {
	return func(yield func(line, Record) bool) {
		off := int64(0)
		for l := range bytes.Lines(b) {
			at := line{off: off, size: len(l)}
			off += int64(len(l))
			if r, ok := decodeLine(l); ok && !yield(at, r) {
				return
			}
		}
	}
}

func decodeLine(b []byte) (r Record, ok bool) {
	b, whole := bytes.CutSuffix(b, []byte("\n"))
	if !whole || len(b) < 10 || len(b) > maxLine || b[8] != ' ' {
		return r, false
	}
	sum, err := strconv.ParseUint(string(b[:8]), 16, 32)
	if err != nil || uint32(sum) != crc32.Checksum(b[9:], castagnoli) {
		return r, false
	}
	return r, json.Unmarshal(b[9:], &r) == nil
}
