// Command debimage builds an OCI archive of a real server out of Debian packages:
//
//	debimage [-cache DIR] IMAGE OUT.tar
//
// The archive is then deployed as oci-archive:OUT.tar.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/volant-edge/volant/internal/debimage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "debimage:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	cache := flag.String("cache", "", "directory of packages and images (default: volant/debimage in the user's cache)")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: debimage [-cache DIR] IMAGE OUT.tar\nimages: %s\n", strings.Join(debimage.Names(), ", "))
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 2 {
		flag.Usage()
		return errors.New("want an image and a file")
	}
	b := debimage.Builder{Cache: *cache, Say: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}}
	file, digest, err := b.Image(ctx, flag.Arg(0))
	if err != nil {
		return err
	}
	if err := copyFile(flag.Arg(1), file); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", flag.Arg(1), string(digest))
	return nil
}

func copyFile(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close() //nolint:errcheck // only read from
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
