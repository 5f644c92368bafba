package debimage

import (
	"bytes"
	"debug/elf"
	"fmt"
	"path"
	"slices"
	"strings"
)

// pkg is a package, unpacked.
type pkg struct {
	name   string
	files  tree
	needs  []string        // names of libraries
	offers map[string]bool // names of libraries
}

// examine reads which libraries the package's binaries need and which it has.
func examine(name string, files tree) (pkg, error) {
	p := pkg{name: name, files: files, offers: make(map[string]bool)}
	for at, f := range files {
		if strings.Contains(path.Base(at), ".so") {
			p.offers[path.Base(at)] = true
		}
		if !bytes.HasPrefix(f.Body, []byte(elf.ELFMAG)) {
			continue
		}
		e, err := elf.NewFile(bytes.NewReader(f.Body))
		if err != nil {
			return pkg{}, fmt.Errorf("%s in %s: %w", at, name, err)
		}
		needs, err := e.DynString(elf.DT_NEEDED)
		if err != nil {
			return pkg{}, fmt.Errorf("%s in %s: %w", at, name, err)
		}
		p.needs = append(p.needs, needs...)
	}
	return p, nil
}

// prune keeps the wanted packages and those with a library that a kept one needs.
func prune(all []pkg, wanted map[string]bool) ([]pkg, error) {
	kept := make(map[string]bool)
	var todo []pkg
	keep := func(p pkg) {
		if !kept[p.name] {
			kept[p.name] = true
			todo = append(todo, p)
		}
	}
	for _, p := range all {
		if wanted[p.name] {
			keep(p)
		}
	}
	for len(todo) > 0 {
		p := todo[0]
		todo = todo[1:]
		for _, lib := range p.needs {
			i := slices.IndexFunc(all, func(o pkg) bool { return o.offers[lib] })
			if i < 0 {
				return nil, fmt.Errorf("%s needs %s, which no package has", p.name, lib)
			}
			keep(all[i])
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(p pkg) bool { return !kept[p.name] }), nil
}
