package openapi

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
)

// Docs are the comments of types and their fields, and the constants of named string types.
type Docs struct {
	types  map[string]string   // "api.App" → comment
	fields map[string]string   // "api.App.ID" → comment
	consts map[string][]string // "volant.State" → values
}

// ReadDocs reads the comments of Go packages: directories by their package's name.
func ReadDocs(dirs map[string]string) (*Docs, error) {
	d := &Docs{types: map[string]string{}, fields: map[string]string{}, consts: map[string][]string{}}
	for pkg, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			src, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			f, err := parser.ParseFile(token.NewFileSet(), file, src, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				return nil, err
			}
			d.file(pkg, f)
		}
	}
	return d, nil
}

func (d *Docs) file(pkg string, f *ast.File) {
	for _, decl := range f.Decls {
		g, ok := decl.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range g.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				d.typ(pkg, g, s)
			case *ast.ValueSpec:
				d.constant(pkg, g, s)
			}
		}
	}
}

func (d *Docs) typ(pkg string, g *ast.GenDecl, s *ast.TypeSpec) {
	name := pkg + "." + s.Name.Name
	d.types[name] = comment(s.Doc, s.Comment)
	if d.types[name] == "" && len(g.Specs) == 1 {
		d.types[name] = comment(g.Doc, nil)
	}
	st, ok := s.Type.(*ast.StructType)
	if !ok {
		return
	}
	for _, f := range st.Fields.List {
		for _, n := range f.Names {
			d.fields[name+"."+n.Name] = comment(f.Doc, f.Comment)
		}
	}
}

// constant notes the values of constants which name their type and are written out.
func (d *Docs) constant(pkg string, g *ast.GenDecl, s *ast.ValueSpec) {
	typ, ok := s.Type.(*ast.Ident)
	if !ok || g.Tok != token.CONST {
		return
	}
	for _, v := range s.Values {
		if lit, ok := v.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			name := pkg + "." + typ.Name
			d.consts[name] = append(d.consts[name], strings.Trim(lit.Value, "\"`"))
		}
	}
}

// comment prefers what stands beside a field: what stands above may be of several.
func comment(above, beside *ast.CommentGroup) string {
	c := beside
	if c == nil {
		c = above
	}
	return strings.Join(strings.Fields(c.Text()), " ")
}
