package cgroup

import (
	"os"
	"path/filepath"
)

// kernel is the cgroup file system.
type kernel interface {
	ReadFile(name string) ([]byte, error)
	WriteFile(name string, b []byte) error // never creates
	Mkdir(name string) error
	Rmdir(name string) error
	Subdirs(name string) ([]string, error)
}

// disk is the real one.
type disk struct{}

func (disk) ReadFile(name string) ([]byte, error) { return os.ReadFile(name) }

func (disk) WriteFile(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func (disk) Mkdir(name string) error { return os.Mkdir(name, 0o755) }
func (disk) Rmdir(name string) error { return os.Remove(name) }

func (disk) Subdirs(name string) ([]string, error) {
	entries, err := os.ReadDir(name)
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, filepath.Base(e.Name()))
		}
	}
	return out, err
}
