package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
)

// maxScratchMB bounds a scratch disk: 1 TiB.
const maxScratchMB = 1 << 20

// Scratch makes an empty ext4 file system of sizeMB at path, or replaces what is there. It is a
// sparse copy of a template: it takes milliseconds, and 200 KB of the disk for 8 GiB.
func (s *Store) Scratch(ctx context.Context, path string, sizeMB int) error {
	if sizeMB < 16 || sizeMB > maxScratchMB {
		return volant.Invalidf("scratch disk of %d MB: 16 to %d work", sizeMB, maxScratchMB)
	}
	template, err := s.template(ctx, sizeMB)
	if err != nil {
		return fmt.Errorf("scratch disk of %d MB: %w", sizeMB, err)
	}
	if err := s.clone(template, path); err != nil {
		return fmt.Errorf("scratch disk of %d MB: %w", sizeMB, s.diskFull(err))
	}
	return nil
}

// template returns the path of an empty file system of that size, made once.
func (s *Store) template(ctx context.Context, sizeMB int) (string, error) {
	path := s.path("scratch", strconv.Itoa(sizeMB)+"m.ext4")
	s.scratch.Lock()
	defer s.scratch.Unlock()
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return path, err
	}
	if err := s.room(int64(sizeMB) << 10); err != nil { // metadata take less than 1/1024
		return "", err
	}
	f, remove, err := s.temp("scratch-")
	if err != nil {
		return "", err
	}
	defer remove()
	if err := f.Truncate(int64(sizeMB) << 20); err != nil {
		return "", s.diskFull(err)
	}
	if err := mkfs(ctx, f.Name()); err != nil {
		return "", s.diskFull(err)
	}
	return path, publish(f, path, 0o400)
}

// mkfs makes an ext4 without a journal, since a scratch disk never outlives its machine, without room
// to grow, which takes 4 MiB, and with inode tables that are written when they are needed. The UUID is fixed: equal templates are equal.
func mkfs(ctx context.Context, path string) error {
	tool, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		tool = "/usr/sbin/mkfs.ext4" // not in everybody's PATH
	}
	const uuid = "766f6c61-6e74-8000-8000-736372617463"
	cmd := exec.CommandContext(ctx, tool, "-q", "-F", "-O", "^has_journal,^resize_inode", "-m", "0", "-U", uuid,
		"-E", "lazy_itable_init=1,nodiscard,root_owner=0:0,hash_seed="+uuid, path)
	out, err := cmd.CombinedOutput()
	if errors.Is(err, fs.ErrNotExist) {
		return volant.Errorf(volant.ErrUnavailable, "mkfs.ext4 is not installed").WithRemedy("apt-get install e2fsprogs")
	}
	if err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// clone copies a file with its holes. The copy appears when it is complete.
func (s *Store) clone(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close() //nolint:errcheck // only read from
	temp := to + ".new"
	dst, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = copySparse(dst, src)
	if closed := dst.Close(); err == nil {
		err = closed
	}
	// Renaming over a file makes ext4 write the new one to disk at once; a scratch disk has no need.
	if err == nil {
		if err = os.Remove(to); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		err = os.Rename(temp, to)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return nil
}

// copySparse shares the blocks, where the file system can, or else copies all but the holes.
func copySparse(dst, src *os.File) error {
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err == nil {
		return nil
	}
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(st.Size()); err != nil {
		return err
	}
	for at := int64(0); ; {
		at, err = src.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // no data after this
		}
		if err != nil {
			return err
		}
		end, err := src.Seek(at, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(dst, at), io.NewSectionReader(src, at, end-at)); err != nil {
			return err
		}
		at = end
	}
}
