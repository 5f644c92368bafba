// App is the program in the conformance suite's guests: it serves its image's name, and counts in a
// file of the guest's memory.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
)

// counter is in memory, on whatever disk the root is.
const counter = "/dev/shm/count"

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(what string) error {
	name, err := os.ReadFile("/name")
	if err != nil {
		return err
	}
	switch what {
	case "name":
		_, err = os.Stdout.Write(name)
		return err
	case "count":
		b, err := os.ReadFile(counter)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		n, _ := strconv.Atoi(string(b)) // an empty file counts from nought
		fmt.Println(n + 1)
		return os.WriteFile(counter, []byte(strconv.Itoa(n+1)), 0o600)
	case "serve":
		l, err := net.Listen("tcp", ":80")
		if err != nil {
			return err
		}
		for {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			_, err = c.Write(name)
			if err := errors.Join(err, c.Close()); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("what is %q", what)
}
